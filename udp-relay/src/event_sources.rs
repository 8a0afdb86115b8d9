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

/// The event sources of both roles: signals, changes of files, and ends of threads.
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
    /// The signal mask cannot be changed, or the process has no free file descriptors.
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

    /// Watches the files of a directory.
    ///
    /// # Errors
    /// The directory does not exist, or the limit of inotify watches is reached.
    pub fn watch(&self, dir: &Path) -> nix::Result<()> {
        let names =
            AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
        let flags = names | AddWatchFlags::IN_CLOSE_WRITE;
        self.changes.add_watch(dir, flags).map(drop)
    }

    /// The descriptors of signals, changes of files, and ends of threads.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [
            self.signals.as_fd(),
            self.changes.as_fd(),
            self.ended.as_fd(),
        ]
    }

    /// Reads all inotify events. Returns whether one is about the configuration. An event without a name is an overflow of the event
    /// queue, and counts as a change.
    pub fn has_config_change(&self) -> bool {
        let mut found = false;
        while let Ok(events) = self.changes.read_events() {
            let mut names = events.iter().map(|event| event.name.as_ref());
            found |= names.any(|name| name.is_none_or(|name| name == FILE));
        }
        found
    }

    /// Resets the event about the end of a thread.
    pub fn clear_thread_end(&self) {
        // The read fails if the event is not set.
        let _ = self.ended.read();
    }
}

/// Waits until a descriptor is readable, or until the deadline. Returns for each group whether one of its descriptors is readable.
///
/// # Errors
/// poll(2) fails.
pub fn readable<const N: usize>(
    groups: [Vec<BorrowedFd<'_>>; N],
    until: Instant,
) -> nix::Result<[bool; N]> {
    let all = groups.iter().flatten();
    let mut polled: Vec<PollFd<'_>> = all
        .map(|file| PollFd::new(*file, PollFlags::POLLIN))
        .collect();
    // poll(2) takes whole milliseconds. Without the addition, poll would return before the deadline.
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
        let polled_group = polled.by_ref().take(group.len());
        polled_group
            .filter(|file| file.any().unwrap_or(true))
            .count()
            > 0
    }))
}
