//! Putting the CNI plugins where the container runtime looks for them, and keeping them there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use netweft_cni::conf::{LOOPBACK_PLUGIN, RUNTIME_LOOPBACK};
use tracing::info;

/// What follows a plugin's name while it is written, before the writer's process id.
pub const ASIDE: &str = ".new-";

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

/// Copy every file of `from` into `to`, each written aside, synced and renamed into place: a plugin that is running
/// keeps its old file, and one that starts finds either the old or the new one, whole. Files that are equal already
/// are left alone. Mode 0755, never set-user-ID. A host without a `loopback` plugin gets a link of that name.
///
/// # Errors
/// The first file that could not be written.
pub fn install(from: &Path, to: &Path) -> Result<(), InstallError> {
    fs::create_dir_all(to).map_err(failed(to))?;
    for (source, target) in pairs(from, to)? {
        let replaced = copy(&source, &target).map_err(failed(&target))?;
        info!(plugin = %target.display(), replaced, "installed plugin");
    }
    let link = to.join(RUNTIME_LOOPBACK);
    if provide_loopback(to, &link).map_err(failed(&link))? {
        info!(plugin = %link.display(), source = LOOPBACK_PLUGIN, "linked loopback plugin, the host has none");
    }
    Ok(())
}

/// Container runtimes call `loopback` for every pod, and some hosts bring none. A symbolic link stands in where nothing has that
/// name, so the host's plugin is never replaced, and the link's target says whose it is. Returns whether the link was made.
fn provide_loopback(to: &Path, link: &Path) -> io::Result<bool> {
    if !to.join(LOOPBACK_PLUGIN).exists() {
        return Ok(false);
    }
    match symlink(LOOPBACK_PLUGIN, link) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `file` is the link that [`install`] makes for a host without a `loopback` plugin.
pub fn is_loopback_link(file: &Path) -> bool {
    fs::read_link(file).is_ok_and(|target| target == Path::new(LOOPBACK_PLUGIN))
}

fn pairs(from: &Path, to: &Path) -> Result<Vec<(PathBuf, PathBuf)>, InstallError> {
    let mut pairs = Vec::new();
    for entry in fs::read_dir(from).map_err(failed(from))? {
        let source = entry.map_err(failed(from))?.path();
        if let Some(name) = source.file_name() {
            let target = to.join(name);
            pairs.push((source, target));
        }
    }
    pairs.sort();
    Ok(pairs)
}

/// What a file is known by: another content, owner, mode or file under the same name has another.
type Signature = (u64, u64, i64, i64);

/// The installed plugins, looked after.
#[derive(Debug)]
pub struct Plugins {
    from: PathBuf,
    to: PathBuf,
    /// What was equal when it was last read, by target: source and target.
    equal: BTreeMap<PathBuf, [Option<Signature>; 2]>,
}

impl Plugins {
    /// Those that are in `from` and are to be in `to`.
    #[must_use]
    pub fn new(from: &Path, to: &Path) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            equal: BTreeMap::new(),
        }
    }

    /// Puts back those that are missing or changed, and gives their files. Files are read only if they may have changed.
    ///
    /// # Errors
    /// The first that cannot be put back; the others are as they were.
    pub fn ensure(&mut self) -> Result<Vec<PathBuf>, InstallError> {
        let mut restored = Vec::new();
        for (source, target) in pairs(&self.from, &self.to)? {
            let now = || [signature(&source), signature(&target)];
            let known = self.equal.get(&target);
            if known.is_some_and(|known| *known == now() && known.iter().all(Option::is_some)) {
                continue;
            }
            fs::create_dir_all(&self.to).map_err(failed(&target))?;
            if copy(&source, &target).map_err(failed(&target))? {
                info!(plugin = %target.display(), "restored plugin");
                restored.push(target.clone());
            }
            let equal = now();
            self.equal.insert(target, equal);
        }
        let link = self.to.join(RUNTIME_LOOPBACK);
        if provide_loopback(&self.to, &link).map_err(failed(&link))? {
            info!(plugin = %link.display(), "restored plugin");
            restored.push(link);
        }
        Ok(restored)
    }

    /// The files of those that are missing or changed.
    ///
    /// # Errors
    /// What they should be cannot be read.
    pub fn missing(&self) -> Result<Vec<PathBuf>, InstallError> {
        let mut missing = Vec::new();
        for (source, target) in pairs(&self.from, &self.to)? {
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
    let found = fs::metadata(file).ok()?;
    Some((found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
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
    let mut aside = target.as_os_str().to_owned();
    aside.push(format!("{ASIDE}{}", std::process::id()));
    let aside = PathBuf::from(aside);
    let written = write_synced(&aside, &bytes, wanted).and_then(|()| fs::rename(&aside, target));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&aside);
    }
    written.map(|()| true)
}

/// Whether `found` is what a plugin is called while it is written.
pub fn is_aside(plugin: &str, found: &str) -> bool {
    let rest = found.strip_prefix(plugin);
    let writer = rest.and_then(|rest| rest.strip_prefix(ASIDE));
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
        for content in ["ours", "ours, newer"] {
            fs::write(from.path().join("netweft-loopback"), content).unwrap();
            install(from.path(), to.path()).unwrap();
            assert_eq!(fs::read_to_string(&link).unwrap(), content);
            assert!(is_loopback_link(&link));
        }
    }

    #[test]
    fn install_keeps_loopback_plugin_of_host() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("netweft-loopback"), "ours").unwrap();
        let theirs = to.path().join("loopback");
        fs::write(&theirs, "theirs").unwrap();
        install(from.path(), to.path()).unwrap();
        assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");
        assert!(!is_loopback_link(&theirs));
        // A link that leads nowhere, for now, is the host's too.
        fs::remove_file(&theirs).unwrap();
        symlink("elsewhere/loopback", &theirs).unwrap();
        install(from.path(), to.path()).unwrap();
        let target = fs::read_link(&theirs).unwrap();
        assert_eq!(target, Path::new("elsewhere/loopback"));
        assert!(!is_loopback_link(&theirs));
    }

    #[test]
    fn install_error_names_missing_source() {
        let to = tempfile::tempdir().unwrap();
        let error = install(Path::new("/nonexistent/plugins"), to.path()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/plugins"));
    }
}
