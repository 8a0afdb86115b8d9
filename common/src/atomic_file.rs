//! Atomic replacement of files: a reader finds the old or the new contents, also after a crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Replaces the file at `path` by one with `bytes` and mode 0600: writes and flushes a temporary file, and renames it.
///
/// # Errors
/// When the file cannot be written; it then still has the old contents.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (temporary, _) = write_temporary(path, bytes)?;
    fs::rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    sync_dir(path)
}

/// Writes `bytes` to a new file in the directory of `path` and flushes it. The name starts with a dot, so that readers of the
/// directory skip the file, and ends with the process ID, so that two writers use different files.
///
/// # Errors
/// When the file cannot be written; no temporary file is left.
pub fn write_temporary(path: &Path, bytes: &[u8]) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    let write = || -> io::Result<File> {
        // Never truncate: a killed process may have linked a file of this name to another name.
        drop(fs::remove_file(&temporary));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(file)
    };
    let file = write().inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    Ok((temporary, file))
}

/// Whether `found` is the name of a temporary file for the file `name`.
#[must_use]
pub fn is_temporary(name: &str, found: &str) -> bool {
    let rest = found
        .strip_prefix('.')
        .and_then(|rest| rest.strip_prefix(name));
    let writer = rest.and_then(|rest| rest.strip_prefix('.'));
    writer.is_some_and(|writer| writer.parse::<u32>().is_ok())
}

/// Makes the entry of `path` in its directory durable.
///
/// # Errors
/// When the directory cannot be opened or flushed.
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
        let path = dir.path().join("directory");
        fs::create_dir_all(path.join("inside")).unwrap();
        assert!(replace(&path, b"text").is_err());
        assert!(path.join("inside").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn temporary_file_name_is_recognised() {
        assert!(is_temporary("node.json", ".node.json.4711"));
        for other in ["node.json", ".node.json", ".node.json.x", ".other.4711"] {
            assert!(!is_temporary("node.json", other), "{other}");
        }
    }
}
