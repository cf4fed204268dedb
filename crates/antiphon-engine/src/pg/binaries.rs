//! Where PostgreSQL's programs are, and of which version.
//!
//! Looked for in the configured folder, else in PATH and the usual places of the distributions. A data
//! directory decides which major version is taken; without one the newest is.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::EngineError;

/// Programs of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) folder: PathBuf,
    /// Major version.
    pub(super) major: u32,
}

impl Binaries {
    /// The path of a program, which must exist.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf, EngineError> {
        let path = self.folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
        Err(EngineError::Failed {
            what: format!("find the program {name}"),
            reason: format!("it is not in {}: install the server's complete package", self.folder.display()),
        })
    }

    /// Finds an installation: of `major` if given, else the newest. Blocks.
    pub(super) fn find(configured: Option<&Path>, major: Option<u32>) -> Result<Self, EngineError> {
        let folders = configured.map_or_else(candidates, |folder| vec![folder.to_owned()]);
        let mut found: Vec<Self> = folders
            .iter()
            .filter_map(|folder| {
                Some(Self { major: version(&folder.join("postgres"))?, folder: folder.clone() })
            })
            .filter(|binaries| major.is_none_or(|major| binaries.major == major))
            .collect();
        // Stable: among the same version the earlier place wins (PATH before the distributions' folders).
        found.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
        found.into_iter().next().ok_or_else(|| {
            let places: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            let wanted = major.map_or_else(|| "14 to 18".to_owned(), |major| major.to_string());
            EngineError::Failed {
                what: format!("find the server's programs (PostgreSQL {wanted})"),
                reason: format!(
                    "there is no such 'postgres' in {}: install it or set postgresql.bin_dir",
                    if places.is_empty() {
                        "PATH or /usr/lib/postgresql".to_owned()
                    } else {
                        places.join(", ")
                    }
                ),
            }
        })
    }
}

/// Folders that have a `postgres`, in the order of preference.
fn candidates() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    let mut add = |folder: PathBuf| {
        let real = folder.join("postgres").canonicalize();
        match real.ok().as_deref().and_then(Path::parent) {
            Some(folder) if !folders.iter().any(|known| known == folder) => folders.push(folder.to_owned()),
            Some(_) | None => {}
        }
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).for_each(&mut add);
    for (parent, prefix, below) in [("/usr/lib/postgresql", "", "bin"), ("/usr", "pgsql-", "bin")] {
        let Ok(entries) = std::fs::read_dir(parent) else { continue };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                add(entry.path().join(below));
            }
        }
    }
    folders
}

/// Major version of a `postgres` program.
fn version(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    major_of(&String::from_utf8_lossy(&output.stdout))
}

/// `postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)` is 15; `18beta1` is 18.
fn major_of(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL)")?.1.trim_start();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_the_program_says() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of("mariadbd 10.11"), None);
    }

    #[test]
    fn missing_programs_are_named_with_where_they_were_looked_for() {
        let error = Binaries::find(Some(Path::new("/nonexistent/bin")), Some(15)).expect_err("nothing there");
        let text = error.to_string();
        assert!(text.contains("/nonexistent/bin") && text.contains("PostgreSQL 15"), "{text}");
    }
}
