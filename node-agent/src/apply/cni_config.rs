//! The CNI configuration of the container runtime: written last, atomically, and never removed.
//!
//! A node without the file is NotReady. The file shows that the datapath has been complete once. State that changes from boot to boot is
//! in the plugin's file in the run directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use netweft_cni::conf::{CONFLIST_FILE, is_read_by_runtimes};
use netweft_common::atomic_file;

/// The configuration could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("write {path}")]
pub struct ConfError {
    path: PathBuf,
    source: io::Error,
}

/// Writes the configuration into `dir` unless `dir` has it. Returns whether it was written.
///
/// # Errors
/// The folder or the file cannot be written.
pub fn ensure(dir: &Path, text: &str) -> Result<bool, ConfError> {
    let path = dir.join(CONFLIST_FILE);
    if fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return Ok(false);
    }
    let written =
        fs::create_dir_all(dir).and_then(|()| atomic_file::replace(&path, text.as_bytes()));
    match written {
        Ok(()) => Ok(true),
        Err(source) => Err(ConfError { path, source }),
    }
}

/// Configurations of other programs that precede the one of netweft: the runtime uses the first by name.
#[must_use]
pub fn preceding(dir: &Path) -> Vec<String> {
    let mut names = others(dir);
    names.retain(|name| name.as_str() < CONFLIST_FILE);
    names
}

/// Configurations of other programs, in the order of precedence.
#[must_use]
pub fn others(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| is_read_by_runtimes(name) && name != CONFLIST_FILE)
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflist_is_written_only_on_change() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ensure(dir.path(), "{}").unwrap());
        assert!(!ensure(dir.path(), "{}").unwrap());
        assert!(ensure(dir.path(), "{ }").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn foreign_cni_config_sorting_first_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "05-other.conflist",
            "10-netweft.conflist",
            "99-loopback.conf",
            "00-readme.txt",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(preceding(dir.path()), ["05-other.conflist"]);
    }
}
