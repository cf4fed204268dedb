//! The rules of the house, as a test: sizes, headers, marks of unfinished work, the direction of dependencies,
//! links and decisions. A rule that stands only in a document is soon broken.
//!
//! It looks at the files that git tracks and at nothing else, starts no server and needs no dependency. Every
//! complaint names file and line and says what to do. The scanner below knows just enough of Rust's lexis to
//! tell code from comments and strings; it does not parse.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 120;

/// Which crates of this workspace each one may depend on. Dependencies run one way.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("antiphon-core", &[]),
    ("antiphon-testcerts", &[]),
    ("antiphon-tls", &["antiphon-testcerts"]),
    ("antiphon-peer", &["antiphon-core", "antiphon-testcerts", "antiphon-tls"]),
    ("antiphon-store", &["antiphon-core", "antiphon-peer", "antiphon-testcerts", "antiphon-tls"]),
    ("antiphon-engine", &["antiphon-core", "antiphon-testcerts", "antiphon-tls"]),
    ("antiphon-mesh", &["antiphon-core", "antiphon-testcerts", "antiphon-tls"]),
    ("antiphon-router", &["antiphon-sql", "antiphon-tls"]),
    ("antiphon-sql", &[]),
    ("antiphon-sim", &["antiphon-core", "antiphon-peer", "antiphon-store"]),
    (
        "antiphon",
        &[
            "antiphon-core",
            "antiphon-peer",
            "antiphon-store",
            "antiphon-engine",
            "antiphon-mesh",
            "antiphon-router",
            "antiphon-testcerts",
            "antiphon-tls",
        ],
    ),
    ("antiphon-bench", &[]),
];

#[test]
fn every_rust_file_fits_a_sitting() {
    report(rust_files(), |file| {
        let lines = file.text.lines().count();
        let complaint = format!("{lines} lines, at most {FILE_LINES_MAX}: split it by question");
        (lines > FILE_LINES_MAX).then_some((lines, complaint)).into_iter().collect()
    });
}

#[test]
fn every_rust_file_opens_with_what_it_is() {
    report(rust_files(), |file| {
        let complaint =
            "no `//!` header: open with what the file is, why, and what it must not do".to_string();
        (!file.text.starts_with("//!")).then_some((1, complaint)).into_iter().collect()
    });
}

#[test]
fn no_function_is_longer_than_can_be_held_in_mind() {
    report(rust_files(), |file| {
        let functions = functions(&code_of(&file.text)).into_iter();
        let long = functions.filter(|function| function.lines() > FUNCTION_LINES_MAX);
        long.map(|function| {
            let (name, lines) = (&function.name, function.lines());
            (function.first, format!("{name} has {lines} lines, at most {FUNCTION_LINES_MAX}: split it"))
        })
        .collect()
    });
}

#[test]
fn no_work_is_left_unfinished() {
    let macros = [concat!("todo", "!("), concat!("unimplemented", "!(")];
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    report(text_files(), |file| {
        let is_rust = file.path.ends_with(".rs");
        let mut found = lines_with(&file.text, &marks, "a mark of unfinished work: do it, or open an issue");
        if is_rust {
            found.extend(lines_with(&code_of(&file.text), &macros, "unfinished code: write it or remove it"));
        }
        found
    });
}

#[test]
fn no_test_is_switched_off() {
    report(rust_files(), |file| {
        lines_with(
            &code_of(&file.text),
            &[concat!("#[", "ignore")],
            "a test that never runs: repair or remove it",
        )
    });
}

#[test]
fn tests_wait_for_conditions_not_for_time() {
    report(rust_files(), |file| {
        let code = code_of(&file.text);
        let functions = functions(&code);
        let from = first_test_line(file, &code);
        let sleeps =
            lines_with(&code, &["sleep("], "a fixed sleep in a test: wait for a condition with a deadline");
        sleeps
            .into_iter()
            .filter(|(line, _)| from.is_some_and(|from| *line >= from))
            // A helper that polls a condition until a deadline has to pause somewhere: its name says so.
            .filter(|(line, _)| !innermost(&functions, *line).is_some_and(|name| name.starts_with("wait")))
            .map(|(line, text)| {
                (line, format!("{text} (only helpers named wait_* may pause, between two looks)"))
            })
            .collect()
    });
}

#[test]
fn dependencies_run_one_way() {
    let allowed: BTreeMap<_, _> = MAY_DEPEND_ON.iter().copied().collect();
    report(files(|path| path.ends_with("Cargo.toml") && path.contains('/')), |file| {
        let Some(name) = file.text.lines().find_map(|line| line.strip_prefix("name = \"")) else {
            return vec![(1, "a Cargo.toml without a package name on a line of its own".into())];
        };
        let name = name.trim_end_matches('"');
        let Some(allowed) = allowed.get(name) else {
            return vec![(1, format!("{name} is unknown here: say in tidy.rs what it may depend on"))];
        };
        let mut complaints = Vec::new();
        for (line, text) in numbered(&file.text) {
            let dependency: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
            if dependency.starts_with("antiphon") && !allowed.contains(&dependency.as_str()) {
                complaints
                    .push((line, format!("{name} may not depend on {dependency}: move what it needs down")));
            }
        }
        complaints
    });
}

#[test]
fn links_in_pages_resolve() {
    report(files(|path| path.ends_with(".md")), |file| {
        let folder = root().join(&file.path).parent().map(Path::to_path_buf).unwrap_or_default();
        let mut complaints = Vec::new();
        for (line, target) in links(&file.text) {
            let path = target.split(['#', '?']).next().unwrap_or_default();
            let elsewhere = target.contains("://") || target.starts_with("mailto:") || path.is_empty();
            if !elsewhere && !folder.join(path).exists() {
                complaints.push((line, format!("the link to {target} leads nowhere: correct or remove it")));
            }
        }
        complaints
    });
}

#[test]
fn decisions_are_numbered_and_exist_where_they_are_named() {
    let prefix = concat!("docs/", "decisions/");
    let mut numbers: BTreeMap<String, String> = BTreeMap::new();
    let mut complaints = Vec::new();
    for page in files(|path| path.starts_with(prefix) && path.ends_with(".md")) {
        let name = page.path.trim_start_matches(prefix).to_string();
        let number: String = name.chars().take_while(char::is_ascii_digit).collect();
        if name != "README.md" && (number.len() != 4 || name.as_bytes().get(4) != Some(&b'-')) {
            complaints.push(format!("{}:1: name it NNNN-what-was-decided.md", page.path));
        } else if let Some(other) = numbers.insert(number.clone(), name) {
            complaints
                .push(format!("{}:1: number {number} is taken by {other}: take the next one", page.path));
        }
    }
    for file in text_files() {
        for (line, text) in numbered(&file.text) {
            let named = text.split(prefix).skip(1).map(|rest| {
                rest.chars().take_while(|c| c.is_alphanumeric() || "-_.".contains(*c)).collect::<String>()
            });
            for page in
                named.filter(|page| page.ends_with(".md") && page.starts_with(|c: char| c.is_ascii_digit()))
            {
                if !root().join(prefix).join(&page).exists() {
                    complaints.push(format!("{}:{line}: there is no {prefix}{page}: write it", file.path));
                }
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn nothing_names_a_path_of_the_machine_it_was_written_on() {
    let paths = [
        concat!("../", "shared"),
        concat!("/root/", ".cargo"),
        concat!(" /", "work/"),
        concat!("\"/", "work/"),
    ];
    report(text_files(), |file| {
        lines_with(&file.text, &paths, "a path that exists on one machine only: say it without the path")
    });
}

#[test]
fn the_scanner_tells_code_from_comments_and_strings() {
    let source = "fn a() { // }\n  let s = \"}\"; let c = '}'; let r = r#\"\"}\"#; /* } /* } */ } */\n}\nfn b<'x>() {}\n";
    let found = functions(&code_of(source));
    let spans: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.first, f.last)).collect();
    assert_eq!(spans, [("a", 1, 3), ("b", 4, 4)]);
}

// --- files ------------------------------------------------------------------------------------------------

/// A tracked file with its path from the root of the repository.
struct Source {
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The tracked text files whose path the caller wants.
fn files(wanted: impl Fn(&str) -> bool) -> Vec<Source> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let listed = listed.expect("could not run git: install it, these rules are about tracked files");
    assert!(listed.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    let wanted = names.split('\0').filter(|path| !path.is_empty() && wanted(path));
    // A file that is no text, or was removed since it was tracked, has nothing to say here.
    wanted
        .filter_map(|path| {
            let text = std::fs::read_to_string(root().join(path)).ok()?;
            Some(Source { path: path.to_string(), text })
        })
        .collect()
}

fn rust_files() -> Vec<Source> {
    let found = files(|path| path.ends_with(".rs"));
    assert!(!found.is_empty(), "git tracks no Rust file: are these tests run in a checkout?");
    found
}

fn text_files() -> Vec<Source> {
    files(|path| !path.ends_with(".lock") && !path.ends_with("package-lock.json"))
}

fn report(files: Vec<Source>, rule: impl Fn(&Source) -> Vec<(usize, String)>) {
    let mut complaints = Vec::new();
    for file in files {
        complaints
            .extend(rule(&file).into_iter().map(|(line, text)| format!("{}:{line}: {text}", file.path)));
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn lines_with(text: &str, needles: &[&str], complaint: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, content) in numbered(text) {
        for needle in needles.iter().filter(|needle| content.contains(**needle)) {
            found.push((line, format!("`{}`: {complaint}", needle.trim())));
        }
    }
    found
}

/// The targets of a page's links, code blocks left out.
fn links(page: &str) -> Vec<(usize, String)> {
    let mut in_code = false;
    let mut found = Vec::new();
    for (line, text) in numbered(page) {
        if text.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            found.push((line, target.to_string()));
        }
    }
    found
}

/// From which line on a file is test code: all of a test file, the rest after `cfg(test)` of another.
fn first_test_line(file: &Source, code: &str) -> Option<usize> {
    if file.path.contains("/tests/") || file.path.ends_with("/tests.rs") {
        return Some(1);
    }
    numbered(code).find(|(_, text)| text.contains("#[cfg(test)]")).map(|(line, _)| line)
}

// --- just enough of Rust's lexis --------------------------------------------------------------------------

struct Function {
    name: String,
    first: usize,
    last: usize,
}

impl Function {
    fn lines(&self) -> usize {
        self.last + 1 - self.first
    }
}

/// The source with comments and the insides of strings blanked out, lines kept.
fn code_of(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped(&chars, at);
        if end > at {
            code.extend(chars[at..end].iter().filter(|c| **c == '\n'));
            at = end;
        } else {
            code.push(chars[at]);
            at += 1;
        }
    }
    code
}

/// Where the comment, string or character that starts here ends; `at` itself when none does.
fn skipped(chars: &[char], at: usize) -> usize {
    let next = chars.get(at + 1).copied();
    let starts_a_word = at == 0 || !(chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match (chars[at], next) {
        ('/', Some('/')) => chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |line| at + line),
        ('/', Some('*')) => block_comment_end(chars, at),
        ('r', Some('"' | '#')) if starts_a_word || chars[at - 1] == 'b' => raw_string_end(chars, at),
        ('"', _) => quoted_end(chars, at, '"'),
        ('\'', Some('\\')) => quoted_end(chars, at, '\''),
        // A lifetime has no closing quote two characters on.
        ('\'', Some(_)) if chars.get(at + 2) == Some(&'\'') => at + 3,
        _ => at,
    }
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0;
    let mut i = at;
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn raw_string_end(chars: &[char], at: usize) -> usize {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    // `r#name` is an identifier, not a string.
    if chars.get(at + 1 + hashes) != Some(&'"') {
        return at;
    }
    let mut i = at + 2 + hashes;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    chars.len()
}

fn quoted_end(chars: &[char], at: usize, quote: char) -> usize {
    let mut i = at + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            c if c == quote => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// The functions with a body, by counting braces.
fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (start, _) in code.match_indices("fn ") {
        let before = code[..start].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[start + 3..];
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(length) = body_end(rest) else { continue };
        let first = 1 + code[..start].matches('\n').count();
        let last = first + rest[..length].matches('\n').count();
        if !name.is_empty() {
            found.push(Function { name, first, last });
        }
    }
    found
}

/// The offset of the brace that closes the first body; nothing for a declaration without one.
fn body_end(rest: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut brackets = 0usize;
    for (offset, c) in rest.char_indices() {
        match c {
            ';' if depth == 0 && brackets == 0 => return None,
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.saturating_sub(1),
            '{' => depth += 1,
            '}' if depth <= 1 => return (depth == 1).then_some(offset),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The name of the innermost function around a line.
fn innermost(functions: &[Function], line: usize) -> Option<&str> {
    let around = functions.iter().filter(|f| f.first <= line && line <= f.last);
    around.max_by_key(|f| f.first).map(|f| f.name.as_str())
}
