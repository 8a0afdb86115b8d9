//! The events that the control loop waits for.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netweft_udp_relay::config::FILE;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What there always is to wait for.
pub struct EventSources {
    signals: SignalFd,
    changes: Inotify,
    ended: Arc<EventFd>,
}

impl EventSources {
    /// Receives the signals that stop the relay, in this thread and the threads that this thread starts from now on. `ended` is
    /// signalled when a thread of a tunnel ends by itself.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(ended: Arc<EventFd>) -> nix::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.thread_block()?;
        Ok(Self {
            signals: SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
            changes: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?,
            ended,
        })
    }

    /// Looks for changes of the configuration in a directory.
    ///
    /// # Errors
    /// It is not there.
    pub fn watch(&self, dir: &Path) -> nix::Result<()> {
        let of_names =
            AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
        let flags = of_names | AddWatchFlags::IN_CLOSE_WRITE;
        self.changes.add_watch(dir, flags).map(drop)
    }

    /// Signals, changes, ends.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [
            self.signals.as_fd(),
            self.changes.as_fd(),
            self.ended.as_fd(),
        ]
    }

    /// Whether a change is one of the configuration. A notice without a name says that notices were lost.
    pub fn is_about_config(&self) -> bool {
        let mut found = false;
        while let Ok(events) = self.changes.read_events() {
            let mut names = events.iter().map(|event| event.name.as_ref());
            found |= names.any(|name| name.is_none_or(|name| name == FILE));
        }
        found
    }

    /// The end of a thread has been seen.
    pub fn forget_end(&self) {
        // There may be nothing to forget.
        let _ = self.ended.read();
    }
}

/// Whether something is to be read, group by group. Waits for it until then.
pub fn readable<const N: usize>(
    groups: [Vec<BorrowedFd<'_>>; N],
    until: Instant,
) -> nix::Result<[bool; N]> {
    let all = groups.iter().flatten();
    let mut polled: Vec<PollFd<'_>> = all
        .map(|file| PollFd::new(*file, PollFlags::POLLIN))
        .collect();
    // One millisecond more, since the kernel's clock is coarser and too early would be once more.
    let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    match poll(
        &mut polled,
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
    ) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error),
    }
    let mut polled = polled.iter();
    Ok(groups.map(|group| {
        let own = polled.by_ref().take(group.len());
        own.filter(|file| file.any().unwrap_or(true)).count() > 0
    }))
}
