//! Files that are whole or not there, whatever happens while they are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts `bytes` at `path`, replacing what was there: written beside it, flushed, renamed.
///
/// The name of what is written beside begins with a dot and ends with the process id, so that readers pass over it and
/// two writers do not meet.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let aside = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    write_and_rename(&aside, path, bytes).inspect_err(|_| drop(fs::remove_file(&aside)))
}

fn write_and_rename(aside: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(aside, path)?;
    sync_dir(path)
}

/// Makes the entry of `path` in its directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}
