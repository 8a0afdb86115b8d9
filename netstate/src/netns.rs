//! Work in another network namespace, on a new thread.
//!
//! `setns` changes only the calling thread. A thread of an asynchronous runtime must not change its namespace, so each work
//! gets a thread of its own. A socket stays in the namespace in which it was created.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use netlink_sys::{AsyncSocket, TokioSocket};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::Handle;

use crate::error::Error;

/// Runs `work` in the network namespace `netns`. `what` describes the work in errors.
///
/// # Errors
/// [`Error::Namespace`] if the namespace cannot be entered or the thread cannot be created.
pub fn run_in<T: Send>(
    netns: BorrowedFd<'_>,
    what: &str,
    work: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    on_thread(
        what,
        || setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from),
        work,
    )
}

/// Runs `work` in a new, empty network namespace. The kernel deletes it with its last file descriptor.
///
/// # Errors
/// [`Error::Namespace`] if the process must not create one.
pub fn run_in_new<T: Send>(what: &str, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    on_thread(
        what,
        || unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from),
        work,
    )
}

/// A new, empty network namespace, which exists as long as the file descriptor.
///
/// # Errors
/// [`Error::Namespace`] if the process must not create one.
pub fn create() -> Result<OwnedFd, Error> {
    let what = "create it";
    let opened = run_in_new(what, || File::open("/proc/thread-self/ns/net"))?;
    opened
        .map(OwnedFd::from)
        .map_err(|source| Error::Namespace {
            what: what.to_owned(),
            source,
        })
}

/// The namespace at a path such as `/var/run/netns/x` or `/proc/1/ns/net`.
///
/// # Errors
/// [`Error::Namespace`] with the cause, [`io::ErrorKind::NotFound`] if the path does not exist.
pub fn open(path: &Path) -> Result<OwnedFd, Error> {
    let error = |source| Error::Namespace {
        what: format!("open {}", path.display()),
        source,
    };
    File::open(path).map(OwnedFd::from).map_err(error)
}

/// A netlink socket of this protocol (`NETLINK_…`) in `netns`, or in the caller's namespace, registered with the current
/// runtime.
pub(crate) fn socket(protocol: isize, netns: Option<BorrowedFd<'_>>) -> Result<TokioSocket, Error> {
    let what = "open a netlink socket";
    let runtime = Handle::current();
    let open = || {
        let _entered = runtime.enter();
        TokioSocket::new(protocol)
    };
    let opened = match netns {
        Some(netns) => run_in(netns, what, open)?,
        None => open(),
    };
    opened.map_err(|source| Error::Connection {
        what: what.to_owned(),
        source,
    })
}

fn on_thread<T: Send>(
    what: &str,
    enter: impl FnOnce() -> io::Result<()> + Send,
    work: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    let error = |source| Error::Namespace {
        what: what.to_owned(),
        source,
    };
    std::thread::scope(|scope| {
        let spawned = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || enter().map(|()| work()));
        match spawned.map_err(error)?.join() {
            Ok(result) => result.map_err(error),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
