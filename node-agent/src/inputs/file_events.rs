//! Notice of files that change under the agent: what it has written for others and what pods ask for, the runtime's network
//! configurations, kernel parameters.
//!
//! What has happened is looked up; that something has is all there is to learn here. What the agent itself writes is noticed
//! too, and costs one look that finds nothing to do. Parameters are noticed when somebody writes them by the same `/proc` (the
//! host's); of forwarding and filters netlink tells besides, whoever writes them.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use netweft_cni::{block_requests, conf, node};
use netweft_udp_relay::config;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::sync::Notify;
use tracing::warn;

use crate::commands::args::Paths;
use crate::commands::install;
use netweft_common::error_chain;

/// What becomes of a file whose content may be another: it is put into place, taken away, or written where it is.
const CONTENT: AddWatchFlags = AddWatchFlags::IN_MOVED_TO
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_CLOSE_WRITE);

/// Tells when a file has changed.
pub struct Watch {
    run_dir: PathBuf,
    cni_conf_dir: PathBuf,
    cni_bin_dir: Option<PathBuf>,
    /// `None` while it cannot be had; the regular look has to do.
    places: Option<Arc<Places>>,
    parameters: BTreeSet<PathBuf>,
}

struct Places {
    inotify: Inotify,
    kinds: Mutex<HashMap<WatchDescriptor, Kind>>,
    changed: Notify,
    /// The thread that reads has ended.
    ended: AtomicBool,
}

/// Which events of a place count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// What pods ask for: every file.
    Requests,
    /// What is shared with the plugin and the relay: the files that the agent writes for them.
    Shared,
    /// The runtime's network configurations: what it would read.
    Configurations,
    /// Where the runtime looks for plugins: ours.
    Plugins,
    /// One kernel parameter.
    Parameter,
}

impl Kind {
    fn counts(self, name: Option<&OsStr>) -> bool {
        let name = name.and_then(OsStr::to_str).unwrap_or_default();
        match self {
            Self::Requests | Self::Parameter => true,
            Self::Shared => [node::FILE, config::FILE].contains(&name),
            Self::Configurations => conf::is_read_by_runtimes(name),
            Self::Plugins => {
                let ours = name.starts_with(conf::PLUGIN) && !name.contains(install::ASIDE);
                ours || name == conf::RUNTIME_LOOPBACK
            }
        }
    }
}

impl Watch {
    /// A watch on the directory shared with the plugin, and on that of the runtime's configurations. If it cannot be had, the
    /// regular look has to do.
    #[must_use]
    pub fn new(paths: &Paths, cni_bin_dir: Option<&Path>) -> Self {
        let mut watch = Self {
            run_dir: paths.run_dir.clone(),
            cni_conf_dir: paths.cni_conf_dir.clone(),
            cni_bin_dir: cni_bin_dir.map(Path::to_owned),
            places: None,
            parameters: BTreeSet::new(),
        };
        watch.begin();
        watch
    }

    /// Waits until a file has changed. Cancelling loses nothing.
    pub async fn changed(&mut self) {
        let Some(places) = &self.places else {
            return std::future::pending().await;
        };
        places.changed.notified().await;
        if places.ended.load(Ordering::Acquire) {
            self.begin();
        }
    }

    fn dirs(&self) -> Vec<(PathBuf, AddWatchFlags, Kind)> {
        let mut dirs = vec![
            (
                self.run_dir.join(block_requests::DIR),
                AddWatchFlags::IN_MOVED_TO,
                Kind::Requests,
            ),
            (self.run_dir.clone(), CONTENT, Kind::Shared),
            (self.cni_conf_dir.clone(), CONTENT, Kind::Configurations),
        ];
        let plugins = self.cni_bin_dir.iter();
        let with_modes = CONTENT.union(AddWatchFlags::IN_ATTRIB);
        dirs.extend(plugins.map(|dir| (dir.clone(), with_modes, Kind::Plugins)));
        dirs
    }

    fn begin(&mut self) {
        self.parameters.clear();
        let dirs = self.dirs();
        let unwatched = |error: &io::Error| {
            warn!(error = %error_chain(error), "watching files failed, polling once a minute");
        };
        self.places = Places::watch(&dirs).inspect_err(unwatched).ok();
    }

    /// Watches these kernel parameters from now on; others that have been watched may be for longer.
    pub fn follow(&mut self, parameters: BTreeSet<PathBuf>) {
        let Some(places) = &self.places else { return };
        // A folder may have been replaced; to watch the same one again changes nothing.
        for (dir, events, kind) in self.dirs() {
            let _ = places.add(&dir, events, kind);
        }
        for parameter in parameters.difference(&self.parameters) {
            // One that is not there (any more) is the next look's business.
            let _ = places.add(parameter, AddWatchFlags::IN_MODIFY, Kind::Parameter);
        }
        self.parameters = parameters;
    }
}

impl Places {
    /// Listens on a thread.
    fn watch(dirs: &[(PathBuf, AddWatchFlags, Kind)]) -> io::Result<Arc<Self>> {
        let places = Arc::new(Self {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC)?,
            kinds: Mutex::default(),
            changed: Notify::new(),
            ended: AtomicBool::new(false),
        });
        for (dir, events, kind) in dirs {
            std::fs::create_dir_all(dir)?;
            places.add(dir, *events, *kind)?;
        }
        let thread = std::thread::Builder::new().name("files".to_owned());
        let ending = Ending(Arc::clone(&places));
        thread.spawn(move || {
            let error = ending.0.listen(Inotify::read_events);
            warn!(error = error.desc(), "file watch broken, recreating it");
        })?;
        Ok(places)
    }

    /// Tells of events until they cannot be read, and why that is.
    fn listen(&self, read: impl Fn(&Inotify) -> nix::Result<Vec<InotifyEvent>>) -> Errno {
        loop {
            match read(&self.inotify) {
                Ok(events) => {
                    // All are looked at: a watch that is over is forgotten.
                    if events.iter().filter(|event| self.counts(event)).count() > 0 {
                        self.changed.notify_one();
                    }
                }
                Err(Errno::EINTR) => {}
                Err(error) => return error,
            }
        }
    }

    fn add(&self, path: &Path, events: AddWatchFlags, kind: Kind) -> io::Result<()> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.insert(self.inotify.add_watch(path, events)?, kind);
        Ok(())
    }

    fn counts(&self, event: &InotifyEvent) -> bool {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            kinds.remove(&event.wd);
            return false;
        }
        // What has overflowed may have been anything.
        let kind = kinds.get(&event.wd);
        kind.is_none_or(|kind| kind.counts(event.name.as_deref()))
    }
}

/// Tells of the end of the thread, also if it panics.
struct Ending(Arc<Places>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use netweft_cni::block_requests::BlockRequests;
    use tempfile::TempDir;

    use super::*;

    struct Fixture {
        watch: Watch,
        run: TempDir,
        cni: TempDir,
    }

    fn fixture() -> Fixture {
        let (run, cni) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let paths = Paths {
            run_dir: run.path().to_owned(),
            cni_conf_dir: cni.path().to_owned(),
            sysctl_dir: PathBuf::new(),
        };
        let watch = Watch::new(&paths, Some(&run.path().join("plugins")));
        Fixture { watch, run, cni }
    }

    impl Fixture {
        async fn hears(&mut self, act: impl FnOnce(&Self)) -> bool {
            let quiet = Duration::from_millis(50);
            while tokio::time::timeout(quiet, self.watch.changed())
                .await
                .is_ok()
            {}
            act(self);
            let heard = self.watch.changed();
            tokio::time::timeout(quiet * 2, heard).await.is_ok()
        }
    }

    #[tokio::test]
    async fn new_block_request_file_wakes_agent() {
        let mut it = fixture();
        let ask = |it: &Fixture| {
            let requests = BlockRequests::new(it.run.path());
            requests.submit(&["a".to_owned()]).unwrap();
        };
        assert!(it.hears(ask).await);
        assert!(!it.hears(|_| {}).await);
        assert!(it.hears(ask).await);
    }

    #[tokio::test]
    async fn only_changes_of_own_output_files_wake_agent() {
        let mut it = fixture();
        for name in [node::FILE, config::FILE] {
            assert!(
                it.hears(|it| fs::write(it.run.path().join(name), "x").unwrap())
                    .await
            );
            assert!(
                it.hears(|it| fs::remove_file(it.run.path().join(name)).unwrap())
                    .await
            );
        }
        let ours = |it: &Fixture| it.cni.path().join(conf::CONFLIST_FILE);
        assert!(it.hears(|it| fs::write(ours(it), "{}").unwrap()).await);
        let away = |it: &Fixture| fs::rename(ours(it), it.cni.path().join("x.bak")).unwrap();
        assert!(it.hears(away).await);
        let foreign = |it: &Fixture| fs::write(it.cni.path().join("05-other.conf"), "").unwrap();
        assert!(it.hears(foreign).await, "one that may sort in front");
        let rest = |it: &Fixture| {
            fs::write(it.run.path().join("status.yaml"), "x").unwrap();
            fs::write(it.cni.path().join("readme.txt"), "x").unwrap();
        };
        assert!(!it.hears(rest).await);
    }

    #[tokio::test]
    async fn only_changes_of_own_plugins_wake_agent() {
        let mut it = fixture();
        let file = |it: &Fixture, name: &str| it.run.path().join("plugins").join(name);
        assert!(
            it.hears(|it| fs::write(file(it, "netweft-portmap"), "x").unwrap())
                .await
        );
        assert!(
            it.hears(|it| fs::remove_file(file(it, "netweft-portmap")).unwrap())
                .await
        );
        let rest = |it: &Fixture| {
            fs::write(file(it, "bridge"), "x").unwrap();
            fs::write(file(it, "netweft.new-17"), "x").unwrap();
        };
        assert!(!it.hears(rest).await);
    }

    #[tokio::test]
    async fn broken_inotify_watch_is_replaced_after_read_error() {
        let mut it = fixture();
        let old = Arc::clone(it.watch.places.as_ref().unwrap());
        let errors = std::cell::RefCell::new(vec![Errno::EIO, Errno::EINTR]);
        let read = |_: &Inotify| Err(errors.borrow_mut().pop().unwrap());
        assert_eq!(old.listen(read), Errno::EIO);
        drop(Ending(Arc::clone(&old)));
        it.watch.changed().await;
        assert!(!Arc::ptr_eq(&old, it.watch.places.as_ref().unwrap()));
        let file = |it: &Fixture| fs::write(it.run.path().join(node::FILE), "x").unwrap();
        assert!(it.hears(file).await);
    }

    #[tokio::test]
    async fn change_of_followed_sysctl_wakes_agent() {
        let mut it = fixture();
        let parameter = it.run.path().join("ip_forward");
        fs::write(&parameter, "1").unwrap();
        let write = |it: &Fixture| fs::write(it.run.path().join("ip_forward"), "0").unwrap();
        assert!(!it.hears(write).await);
        let missing = it.run.path().join("missing");
        it.watch.follow([parameter.clone(), missing].into());
        assert!(it.hears(|_| fs::write(&parameter, "0").unwrap()).await);
    }
}
