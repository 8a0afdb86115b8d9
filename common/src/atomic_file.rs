//! Files that are replaced atomically: whole or not there, whatever happens while they are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Puts `bytes` at `path`, replacing what was there: written beside it, flushed, renamed. Mode 0600.
///
/// # Errors
/// It cannot be written; what was there is still there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (aside, _) = write_aside(path, bytes)?;
    fs::rename(&aside, path).inspect_err(|_| drop(fs::remove_file(&aside)))?;
    sync_dir(path)
}

/// Writes `bytes` to a new file beside `path` and flushes it. The name begins with a dot and ends with the process id, so
/// that readers pass over it and two writers do not meet.
///
/// # Errors
/// It cannot be written; no file is left.
pub fn write_aside(path: &Path, bytes: &[u8]) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let aside = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    let write = || -> io::Result<File> {
        // Never truncate: a leftover of the same name may have been linked elsewhere before its writer was killed.
        drop(fs::remove_file(&aside));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(file)
    };
    let file = write().inspect_err(|_| drop(fs::remove_file(&aside)))?;
    Ok((aside, file))
}

/// Whether `found` is what a file that is to become `name` is called while it is written.
#[must_use]
pub fn is_aside(name: &str, found: &str) -> bool {
    let rest = found
        .strip_prefix('.')
        .and_then(|rest| rest.strip_prefix(name));
    let writer = rest.and_then(|rest| rest.strip_prefix('.'));
    writer.is_some_and(|writer| writer.parse::<u32>().is_ok())
}

/// Makes the entry of `path` in its directory durable.
///
/// # Errors
/// The directory cannot be opened or synchronised.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaced_file_has_mode_0600_and_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.json");
        for text in ["first", "second"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn failed_replacement_keeps_file_and_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        assert!(replace(&path, b"text").is_err());
        assert!(path.join("inside").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn temporary_file_name_is_recognised() {
        assert!(is_aside("node.json", ".node.json.4711"));
        for other in ["node.json", ".node.json", ".node.json.x", ".other.4711"] {
            assert!(!is_aside("node.json", other), "{other}");
        }
    }
}
