//! Installs the CNI plugins in the plugin directory of the container runtime, and restores them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use netweft_cni::conf::{LOOPBACK_PLUGIN, RUNTIME_LOOPBACK};
use tracing::info;

/// Part of the name of a temporary file, between the name of the plugin and the process ID of the writer.
pub const TEMPORARY_INFIX: &str = ".new-";

/// A plugin could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("install {file}")]
pub struct InstallError {
    file: PathBuf,
    source: io::Error,
}

fn failed(file: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let file = file.to_owned();
    move |source| InstallError { file, source }
}

/// Copies every file of `from` to `to`. Each is written to a temporary file, synced and renamed: a running plugin keeps its old file,
/// and one that starts finds either the old or the new file, never a part of it. Equal files are not changed. Mode 0755, never
/// set-user-ID. A host without a `loopback` plugin gets a link with that name.
///
/// # Errors
/// The first file that could not be written.
pub fn install(from: &Path, to: &Path) -> Result<(), InstallError> {
    fs::create_dir_all(to).map_err(failed(to))?;
    for (source, target) in files(from, to)? {
        let replaced = copy(&source, &target).map_err(failed(&target))?;
        info!(plugin = %target.display(), replaced, "installed plugin");
    }
    let link = to.join(RUNTIME_LOOPBACK);
    if link_loopback(to, &link).map_err(failed(&link))? {
        info!(plugin = %link.display(), source = LOOPBACK_PLUGIN, "linked loopback plugin, the host has none");
    }
    Ok(())
}

/// Container runtimes call `loopback` for every pod, and some hosts do not have it. They get a symbolic link to netweft's plugin. A
/// plugin of the host is never replaced, and the target of the link identifies it. Returns whether the link was created.
fn link_loopback(to: &Path, link: &Path) -> io::Result<bool> {
    if !to.join(LOOPBACK_PLUGIN).exists() {
        return Ok(false);
    }
    match symlink(LOOPBACK_PLUGIN, link) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `file` is the link that [`install`] creates on a host without a `loopback` plugin.
pub fn is_loopback_link(file: &Path) -> bool {
    fs::read_link(file).is_ok_and(|target| target == Path::new(LOOPBACK_PLUGIN))
}

/// Source and target of each file.
fn files(from: &Path, to: &Path) -> Result<Vec<(PathBuf, PathBuf)>, InstallError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(from).map_err(failed(from))? {
        let source = entry.map_err(failed(from))?.path();
        if let Some(name) = source.file_name() {
            let target = to.join(name);
            files.push((source, target));
        }
    }
    files.sort();
    Ok(files)
}

/// Inode, size and change time. They differ for another content, owner, mode or file with the same name.
type Signature = (u64, u64, i64, i64);

/// The installed plugins, which the agent restores.
#[derive(Debug)]
pub struct Plugins {
    from: PathBuf,
    to: PathBuf,
    /// Signatures of source and target of equal files, by target.
    equal: BTreeMap<PathBuf, [Option<Signature>; 2]>,
}

impl Plugins {
    /// The plugins of `from`, to be installed in `to`.
    #[must_use]
    pub fn new(from: &Path, to: &Path) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            equal: BTreeMap::new(),
        }
    }

    /// Restores missing and changed plugins, and returns their files. Files are read only if they may have changed.
    ///
    /// # Errors
    /// The first plugin that cannot be restored.
    pub fn restore(&mut self) -> Result<Vec<PathBuf>, InstallError> {
        let mut restored = Vec::new();
        for (source, target) in files(&self.from, &self.to)? {
            let signatures = || [signature(&source), signature(&target)];
            let equal = self.equal.get(&target);
            if equal.is_some_and(|it| *it == signatures() && it.iter().all(Option::is_some)) {
                continue;
            }
            fs::create_dir_all(&self.to).map_err(failed(&target))?;
            if copy(&source, &target).map_err(failed(&target))? {
                info!(plugin = %target.display(), "restored plugin");
                restored.push(target.clone());
            }
            let signatures = signatures();
            self.equal.insert(target, signatures);
        }
        let link = self.to.join(RUNTIME_LOOPBACK);
        if link_loopback(&self.to, &link).map_err(failed(&link))? {
            info!(plugin = %link.display(), "restored plugin");
            restored.push(link);
        }
        Ok(restored)
    }

    /// The files of missing and changed plugins.
    ///
    /// # Errors
    /// A source cannot be read.
    pub fn missing(&self) -> Result<Vec<PathBuf>, InstallError> {
        let mut missing = Vec::new();
        for (source, target) in files(&self.from, &self.to)? {
            let bytes = fs::read(&source).map_err(failed(&source))?;
            if !is_installed(&bytes, &target) {
                missing.push(target);
            }
        }
        let link = self.to.join(RUNTIME_LOOPBACK);
        if self.from.join(LOOPBACK_PLUGIN).exists() && fs::symlink_metadata(&link).is_err() {
            missing.push(link);
        }
        Ok(missing)
    }
}

fn signature(file: &Path) -> Option<Signature> {
    let metadata = fs::metadata(file).ok()?;
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    Some((metadata.ino(), metadata.size(), seconds, nanoseconds))
}

fn is_installed(bytes: &[u8], target: &Path) -> bool {
    let mode = || fs::metadata(target).map(|found| found.permissions().mode() & 0o7777);
    fs::read(target).is_ok_and(|present| present == bytes) && mode().is_ok_and(|mode| mode == 0o755)
}

fn copy(source: &Path, target: &Path) -> io::Result<bool> {
    let bytes = fs::read(source)?;
    let wanted = fs::Permissions::from_mode(0o755);
    if is_installed(&bytes, target) {
        return Ok(false);
    }
    let mut temporary = target.as_os_str().to_owned();
    temporary.push(format!("{TEMPORARY_INFIX}{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = write_synced(&temporary, &bytes, wanted);
    let replaced = written.and_then(|()| fs::rename(&temporary, target));
    if replaced.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    replaced.map(|()| true)
}

/// Whether `name` is the name of a temporary file of a plugin.
pub fn is_temporary(plugin: &str, name: &str) -> bool {
    let rest = name.strip_prefix(plugin);
    let writer = rest.and_then(|rest| rest.strip_prefix(TEMPORARY_INFIX));
    writer.is_some_and(|writer| writer.parse::<u32>().is_ok())
}

fn write_synced(path: &Path, bytes: &[u8], mode: fs::Permissions) -> io::Result<()> {
    fs::write(path, bytes)?;
    let file = fs::File::open(path)?;
    file.set_permissions(mode)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn install_replaces_changed_plugins_and_keeps_equal_ones() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("netweft"), "new").unwrap();
        let target = to.path().join("netweft");
        fs::write(&target, "old, and longer").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o4755)).unwrap();
        assert!(copy(&from.path().join("netweft"), &target).unwrap());
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        assert_eq!(
            fs::metadata(&target).unwrap().permissions().mode() & 0o7777,
            0o755
        );
        assert!(!copy(&from.path().join("netweft"), &target).unwrap());
        install(from.path(), to.path()).unwrap();
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
    }

    #[test]
    fn install_links_loopback_plugin_when_host_has_none() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let link = to.path().join("loopback");
        install(from.path(), to.path()).unwrap();
        assert!(!link.is_symlink(), "there is nothing to link to");
        for content in ["netweft", "netweft, newer"] {
            fs::write(from.path().join("netweft-loopback"), content).unwrap();
            install(from.path(), to.path()).unwrap();
            assert_eq!(fs::read_to_string(&link).unwrap(), content);
            assert!(is_loopback_link(&link));
        }
    }

    #[test]
    fn install_keeps_loopback_plugin_of_host() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("netweft-loopback"), "netweft").unwrap();
        let loopback = to.path().join("loopback");
        fs::write(&loopback, "host").unwrap();
        install(from.path(), to.path()).unwrap();
        assert_eq!(fs::read_to_string(&loopback).unwrap(), "host");
        assert!(!is_loopback_link(&loopback));
        // A dangling link belongs to the host, too.
        fs::remove_file(&loopback).unwrap();
        symlink("elsewhere/loopback", &loopback).unwrap();
        install(from.path(), to.path()).unwrap();
        let target = fs::read_link(&loopback).unwrap();
        assert_eq!(target, Path::new("elsewhere/loopback"));
        assert!(!is_loopback_link(&loopback));
    }

    #[test]
    fn install_error_names_missing_source() {
        let to = tempfile::tempdir().unwrap();
        let error = install(Path::new("/nonexistent/plugins"), to.path()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/plugins"));
    }
}
