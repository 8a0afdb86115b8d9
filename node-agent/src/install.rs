//! Putting the CNI plugins where the container runtime looks for them.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use netweft_cni::conf::{LOOPBACK_PLUGIN, RUNTIME_LOOPBACK};
use tracing::info;

/// What follows a plugin's name while it is written, before the writer's process id.
const ASIDE: &str = ".new-";

/// A plugin could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("install {file}")]
pub struct InstallError {
    file: PathBuf,
    source: io::Error,
}

/// Copy every file of `from` into `to`, each written aside, synced and renamed into place: a plugin that is running
/// keeps its old file, and one that starts finds either the old or the new one, whole. Files that are equal already
/// are left alone. Mode 0755, never set-user-ID. A host without a `loopback` plugin gets a link of that name.
///
/// # Errors
/// The first file that could not be written.
pub fn install(from: &Path, to: &Path) -> Result<(), InstallError> {
    let failed = |file: &Path| {
        let file = file.to_owned();
        move |source| InstallError { file, source }
    };
    fs::create_dir_all(to).map_err(failed(to))?;
    for entry in fs::read_dir(from).map_err(failed(from))? {
        let source = entry.map_err(failed(from))?.path();
        let Some(name) = source.file_name() else {
            continue;
        };
        let target = to.join(name);
        let replaced = copy(&source, &target).map_err(failed(&target))?;
        info!(plugin = %target.display(), replaced, "plugin installed");
    }
    let link = to.join(RUNTIME_LOOPBACK);
    if provide_loopback(to, &link).map_err(failed(&link))? {
        info!(plugin = %link.display(), "the host has no loopback plugin: linked to {LOOPBACK_PLUGIN}");
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

fn copy(source: &Path, target: &Path) -> io::Result<bool> {
    let bytes = fs::read(source)?;
    let wanted = fs::Permissions::from_mode(0o755);
    if fs::read(target).is_ok_and(|present| present == bytes)
        && fs::metadata(target)?.permissions().mode() & 0o7777 == 0o755
    {
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
    fn plugins_are_replaced_whole_and_equal_ones_left_alone() {
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
    fn a_host_without_a_loopback_plugin_gets_one() {
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
    fn a_loopback_plugin_of_the_host_is_left_alone() {
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
    fn a_missing_source_is_named() {
        let to = tempfile::tempdir().unwrap();
        let error = install(Path::new("/nonexistent/plugins"), to.path()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/plugins"));
    }
}
