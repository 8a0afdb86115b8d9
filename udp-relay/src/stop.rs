//! The request to stop that threads share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Asks threads to stop. Once asked they stay asked.
#[derive(Debug)]
pub struct Stop {
    asked: AtomicBool,
    event: EventFd,
}

impl Stop {
    /// A request that is not made yet.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            asked: AtomicBool::new(false),
            event: new_event()?,
        })
    }

    /// Asks every thread to stop.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        // No thread reads the event, so every waiting thread wakes. The event is full only after 2^64 writes.
        let _ = self.event.write(1);
    }

    /// Whether to stop.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Waits until there is something to read, or this is asked.
    ///
    /// # Errors
    /// What is waited for is gone.
    pub fn or_readable(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let mut both = [
            PollFd::new(file, PollFlags::POLLIN),
            PollFd::new(self.event.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut both, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// An event that threads are woken by.
///
/// # Errors
/// There are no descriptors left.
pub fn new_event() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(
        EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
    )?)
}
