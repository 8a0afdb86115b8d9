//! The stop request that the threads of a tunnel share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A stop request for several threads. The request is permanent.
#[derive(Debug)]
pub struct Stop {
    requested: AtomicBool,
    event: EventFd,
}

impl Stop {
    /// Without a request.
    ///
    /// # Errors
    /// The process has no free file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            requested: AtomicBool::new(false),
            event: new_event()?,
        })
    }

    /// Requests every thread to stop.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
        // No thread reads the event, so every waiting thread wakes. The event is full only after 2^64 writes.
        let _ = self.event.write(1);
    }

    /// Whether a stop is requested.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Waits until the file is readable, or a stop is requested.
    ///
    /// # Errors
    /// poll(2) fails.
    pub fn wait_readable(&self, file: BorrowedFd<'_>) -> io::Result<()> {
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

/// A non-blocking eventfd.
///
/// # Errors
/// The process has no free file descriptors.
pub fn new_event() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(
        EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
    )?)
}
