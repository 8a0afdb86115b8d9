//! Watches the files that trigger a reconcile: files of the agent for other programs, requests of pods, CNI configurations, plugins,
//! and sysctls.
//!
//! An event only triggers a reconcile, which reads the files. Changes by the agent itself trigger one, too, which then finds no
//! difference. Sysctls are watched in the host's mount of `/proc`; netlink reports changes of forwarding and filters through any mount.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use futures::{FutureExt, StreamExt};
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};
use netweft_cni::{block_requests, conf, node};
use netweft_common::error_chain;
use netweft_udp_relay::config;
use tracing::warn;

use crate::commands::args::Paths;
use crate::commands::install;

/// Changes of the content of a directory: a file is renamed into or out of it, deleted, or written.
const CONTENT: WatchMask = WatchMask::MOVED_TO
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::DELETE)
    .union(WatchMask::CLOSE_WRITE);

/// Length of the buffer for events in bytes.
const BUFFER: usize = 4096;

/// Watches files. If the kernel provides no inotify instance, changes are detected by resyncs only.
pub struct FileWatch {
    run_dir: PathBuf,
    cni_conf_dir: PathBuf,
    cni_bin_dir: Option<PathBuf>,
    events: Option<FileEvents>,
    sysctls: BTreeSet<PathBuf>,
}

/// An inotify instance.
struct FileEvents {
    stream: EventStream<Vec<u8>>,
    watched: HashMap<WatchDescriptor, Watched>,
}

/// A watched directory or file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    /// The directory of block requests: every file.
    BlockRequests,
    /// The run directory: the files that the agent writes for plugin and relay.
    RunDir,
    /// The directory of CNI configurations: the files that runtimes read.
    CniConfigurations,
    /// The plugin directory: the plugins of netweft.
    Plugins,
    /// A sysctl.
    Sysctl,
}

impl Watched {
    /// Whether an event of this file triggers a reconcile.
    fn is_relevant(self, name: Option<&OsStr>) -> bool {
        let name = name.and_then(OsStr::to_str).unwrap_or_default();
        match self {
            Self::BlockRequests | Self::Sysctl => true,
            Self::RunDir => [node::FILE, config::FILE].contains(&name),
            Self::CniConfigurations => conf::is_read_by_runtimes(name),
            Self::Plugins => {
                let is_temporary = name.contains(install::TEMPORARY_INFIX);
                let is_plugin = name.starts_with(conf::PLUGIN) && !is_temporary;
                is_plugin || name == conf::RUNTIME_LOOPBACK
            }
        }
    }
}

impl FileWatch {
    /// Watches the directories.
    #[must_use]
    pub fn new(paths: &Paths, cni_bin_dir: Option<&Path>) -> Self {
        let mut watch = Self {
            run_dir: paths.run_dir.clone(),
            cni_conf_dir: paths.cni_conf_dir.clone(),
            cni_bin_dir: cni_bin_dir.map(Path::to_owned),
            events: None,
            sysctls: BTreeSet::new(),
        };
        watch.recreate();
        watch
    }

    /// Waits until a file has changed. Cancelling loses no change.
    pub async fn changed(&mut self) {
        let Some(events) = &mut self.events else {
            return std::future::pending().await;
        };
        let result = events.next_relevant().await;
        self.handle(result);
    }

    /// Replaces a broken inotify instance.
    fn handle(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            warn!(error = %error_chain(&error), "file watch broken, recreating it");
            self.recreate();
        }
    }

    /// Watches these sysctls from now on. Others that have been watched may still trigger a reconcile.
    pub fn watch_sysctls(&mut self, sysctls: BTreeSet<PathBuf>) {
        let dirs = self.dirs();
        let Some(events) = &mut self.events else {
            return;
        };
        // A directory may have been replaced. To watch the same directory again has no effect.
        for (dir, mask, watched) in dirs {
            let _ = events.add(&dir, mask, watched);
        }
        for sysctl in sysctls.difference(&self.sysctls) {
            // The next reconcile handles a sysctl that does not exist (any more).
            let _ = events.add(sysctl, WatchMask::MODIFY, Watched::Sysctl);
        }
        self.sysctls = sysctls;
    }

    fn recreate(&mut self) {
        self.sysctls.clear();
        let failed = |error: &io::Error| {
            warn!(error = %error_chain(error), "watching files failed, polling once a minute");
        };
        self.events = FileEvents::new(&self.dirs()).inspect_err(failed).ok();
    }

    fn dirs(&self) -> Vec<(PathBuf, WatchMask, Watched)> {
        let requests = self.run_dir.join(block_requests::DIR);
        let mut dirs = vec![
            (requests, WatchMask::MOVED_TO, Watched::BlockRequests),
            (self.run_dir.clone(), CONTENT, Watched::RunDir),
            (
                self.cni_conf_dir.clone(),
                CONTENT,
                Watched::CniConfigurations,
            ),
        ];
        let plugins = self.cni_bin_dir.iter();
        let with_mode = CONTENT.union(WatchMask::ATTRIB);
        dirs.extend(plugins.map(|dir| (dir.clone(), with_mode, Watched::Plugins)));
        dirs
    }
}

impl FileEvents {
    /// Watches the directories, and creates missing ones.
    fn new(dirs: &[(PathBuf, WatchMask, Watched)]) -> io::Result<Self> {
        let mut events = Self {
            stream: Inotify::init()?.into_event_stream(vec![0; BUFFER])?,
            watched: HashMap::new(),
        };
        for (dir, mask, watched) in dirs {
            std::fs::create_dir_all(dir)?;
            events.add(dir, *mask, *watched)?;
        }
        Ok(events)
    }

    fn add(&mut self, path: &Path, mask: WatchMask, watched: Watched) -> io::Result<()> {
        let descriptor = self.stream.watches().add(path, mask)?;
        self.watched.insert(descriptor, watched);
        Ok(())
    }

    /// Waits for a relevant event, and drops the events that have arrived with it.
    async fn next_relevant(&mut self) -> io::Result<()> {
        loop {
            let event = self.stream.next().await;
            if self.is_relevant(event)? {
                break;
            }
        }
        while let Some(event) = self.stream.next().now_or_never() {
            self.is_relevant(event)?;
        }
        Ok(())
    }

    fn is_relevant(&mut self, event: Option<io::Result<EventOwned>>) -> io::Result<bool> {
        let event = match event {
            Some(Ok(event)) => event,
            Some(Err(error)) if error.kind() == ErrorKind::Interrupted => return Ok(false),
            Some(Err(error)) => return Err(error),
            None => return Err(ErrorKind::UnexpectedEof.into()),
        };
        if event.mask.contains(EventMask::IGNORED) {
            // The watch has ended, because its file was deleted.
            self.watched.remove(&event.wd);
            return Ok(false);
        }
        // An overflow of the queue has no descriptor, and may have dropped relevant events.
        let watched = self.watched.get(&event.wd);
        Ok(watched.is_none_or(|watched| watched.is_relevant(event.name.as_deref())))
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
        watch: FileWatch,
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
        let watch = FileWatch::new(&paths, Some(&run.path().join("plugins")));
        Fixture { watch, run, cni }
    }

    impl Fixture {
        /// Whether an action triggers a reconcile.
        async fn triggers(&mut self, act: impl FnOnce(&Self)) -> bool {
            let quiet = Duration::from_millis(50);
            while tokio::time::timeout(quiet, self.watch.changed())
                .await
                .is_ok()
            {}
            act(self);
            let changed = self.watch.changed();
            tokio::time::timeout(quiet * 2, changed).await.is_ok()
        }
    }

    #[tokio::test]
    async fn new_block_request_file_triggers_reconcile() {
        let mut it = fixture();
        let request = |it: &Fixture| {
            let requests = BlockRequests::new(it.run.path());
            requests.submit(&["a".to_owned()]).unwrap();
        };
        assert!(it.triggers(request).await);
        assert!(!it.triggers(|_| {}).await);
        assert!(it.triggers(request).await);
    }

    #[tokio::test]
    async fn only_changes_of_read_files_trigger_reconcile() {
        let mut it = fixture();
        for name in [node::FILE, config::FILE] {
            assert!(
                it.triggers(|it| fs::write(it.run.path().join(name), "x").unwrap())
                    .await
            );
            assert!(
                it.triggers(|it| fs::remove_file(it.run.path().join(name)).unwrap())
                    .await
            );
        }
        let conflist = |it: &Fixture| it.cni.path().join(conf::CONFLIST_FILE);
        assert!(
            it.triggers(|it| fs::write(conflist(it), "{}").unwrap())
                .await
        );
        let rename = |it: &Fixture| fs::rename(conflist(it), it.cni.path().join("x.bak")).unwrap();
        assert!(it.triggers(rename).await);
        let foreign = |it: &Fixture| fs::write(it.cni.path().join("05-other.conf"), "").unwrap();
        assert!(it.triggers(foreign).await, "it may sort before netweft's");
        let irrelevant = |it: &Fixture| {
            fs::write(it.run.path().join("status.yaml"), "x").unwrap();
            fs::write(it.cni.path().join("readme.txt"), "x").unwrap();
        };
        assert!(!it.triggers(irrelevant).await);
    }

    #[tokio::test]
    async fn only_changes_of_own_plugins_trigger_reconcile() {
        let mut it = fixture();
        let file = |it: &Fixture, name: &str| it.run.path().join("plugins").join(name);
        assert!(
            it.triggers(|it| fs::write(file(it, "netweft-portmap"), "x").unwrap())
                .await
        );
        assert!(
            it.triggers(|it| fs::remove_file(file(it, "netweft-portmap")).unwrap())
                .await
        );
        let irrelevant = |it: &Fixture| {
            fs::write(file(it, "bridge"), "x").unwrap();
            fs::write(file(it, "netweft.new-17"), "x").unwrap();
        };
        assert!(!it.triggers(irrelevant).await);
    }

    #[tokio::test]
    async fn broken_inotify_watch_is_replaced_after_read_error() {
        let mut it = fixture();
        let write = |it: &Fixture| fs::write(it.run.path().join(node::FILE), "x").unwrap();
        it.watch.events.as_mut().unwrap().watched.clear();
        it.watch
            .handle(Err(io::Error::from_raw_os_error(nix::libc::EIO)));
        assert_eq!(it.watch.events.as_ref().unwrap().watched.len(), 4);
        assert!(it.triggers(write).await);
    }

    #[tokio::test]
    async fn burst_of_file_changes_triggers_once() {
        let mut it = fixture();
        for _ in 0..100 {
            fs::write(it.run.path().join(node::FILE), "x").unwrap();
        }
        it.watch.changed().await;
        let quiet = Duration::from_millis(50);
        let again = tokio::time::timeout(quiet, it.watch.changed()).await;
        assert!(again.is_err());
    }

    #[tokio::test]
    async fn change_of_watched_sysctl_triggers_reconcile() {
        let mut it = fixture();
        let sysctl = it.run.path().join("ip_forward");
        fs::write(&sysctl, "1").unwrap();
        let write = |it: &Fixture| fs::write(it.run.path().join("ip_forward"), "0").unwrap();
        assert!(!it.triggers(write).await);
        let missing = it.run.path().join("missing");
        it.watch.watch_sysctls([sysctl.clone(), missing].into());
        assert!(it.triggers(|_| fs::write(&sysctl, "0").unwrap()).await);
    }
}
