//! Scenarios: a small cluster on the table, told what happens to it, with the transcript of what it decides.
//!
//! Each file under `testdata/ha` holds its input (`> command` lines and `#` comments) and between them the
//! transcript: when, who, what it is, what it does, why. `UPDATE=1 cargo test -p antiphon-core --test
//! scenarios` writes the transcripts anew; otherwise a difference fails the test and is shown line by line.
//! The table has ideal effects and no faults but those that a scenario names; chance belongs to the simulation.

mod effects;
mod script;
mod show;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/ha")
}

fn scenarios() -> Vec<PathBuf> {
    let entries = fs::read_dir(folder()).expect("testdata/ha is part of the crate");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// The lines that differ, each with its number.
fn differences(expected: &str, found: &str) -> String {
    let (expected, found): (Vec<_>, Vec<_>) = (expected.lines().collect(), found.lines().collect());
    let mut shown = String::new();
    for at in 0..expected.len().max(found.len()) {
        let (was, is) = (expected.get(at), found.get(at));
        if was != is {
            let number = at + 1;
            shown += &was.map(|line| format!("{number:4} - {line}\n")).unwrap_or_default();
            shown += &is.map(|line| format!("{number:4} + {line}\n")).unwrap_or_default();
        }
    }
    shown
}

#[test]
fn every_scenario_goes_as_its_transcript_says() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut failed = String::new();
    for file in scenarios() {
        let text = fs::read_to_string(&file).expect("a scenario is text");
        let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let found = script::play(&text).unwrap_or_else(|problem| panic!("{name}: {problem}"));
        if update {
            fs::write(&file, &found).expect("testdata can be written");
        } else if found != text {
            failed += &format!("--- {name}\n{}", differences(&text, &found));
        }
    }
    assert!(failed.is_empty(), "transcripts differ (UPDATE=1 writes them anew):\n{failed}");
}

#[test]
fn there_is_a_scenario_for_every_promise() {
    assert!(scenarios().len() >= 25, "scenarios are missing from {}", folder().display());
}
