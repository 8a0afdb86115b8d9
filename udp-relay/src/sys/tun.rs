//! TUN links: `/dev/net/tun` and its ioctls.
//!
//! A queue of a link is an open file. A persistent link remains when its last queue is closed. The next process that
//! opens a link of this name gets the link with the same MTU, addresses and routes (`tun_set_iff`).

use std::ffi::{CStr, c_int};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use libc::{IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TUN, IFF_VNET_HDR};
use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const DEVICE: &str = "/dev/net/tun";

/// Why a link cannot be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// `/dev/net/tun` does not exist, or the process may not open it.
    #[error("open {DEVICE}")]
    Device(#[source] io::Error),
    /// A link with this name exists, and is not a TUN link with several queues.
    #[error("the link {0} exists and is not a TUN link of netweft: rename or delete the link")]
    Foreign(String),
    /// The kernel refused an ioctl.
    #[error("{what} the TUN link {link}")]
    Request {
        /// The attempted operation.
        what: &'static str,
        /// Name of the link.
        link: String,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
}

/// Opens `count` queues of the link, and makes the link persistent. A missing link is created.
///
/// # Errors
/// `/dev/net/tun` cannot be opened, a foreign link has the name, or an ioctl fails.
pub fn open(link: &str, count: usize) -> Result<Vec<File>, TunError> {
    let queues = (0..count)
        .map(|_| attach(link))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(queue) = queues.first() {
        set_persistent(link, queue, true)?;
        offload(link, queue)?;
    }
    Ok(queues)
}

/// Clears the persistence of the link, so that the kernel removes the link when its last queue is closed.
///
/// # Errors
/// The ioctl fails.
pub fn release(link: &str, queue: &File) -> Result<(), TunError> {
    set_persistent(link, queue, false)
}

/// Removes a persistent link that no process has open. Returns `false` for a link of another type, which remains.
///
/// # Errors
/// `/dev/net/tun` cannot be opened, or an ioctl fails.
pub fn remove_unused(link: &str) -> Result<bool, TunError> {
    match attach(link) {
        Ok(queue) => release(link, &queue).map(|()| true),
        Err(TunError::Foreign(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens one more queue.
fn attach(link: &str) -> Result<File, TunError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    let file = options.open(DEVICE).map_err(TunError::Device)?;
    let mut request = request_for(link);
    // `ifru_flags` has 16 bits, which is enough for these flags.
    let flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    match ioctl(&file, libc::TUNSETIFF, &raw mut request) {
        Ok(()) => Ok(file),
        // The error for a link of another type (`tun_set_iff`).
        Err(error)
            if error.raw_os_error() == Some(libc::EINVAL) && if_nametoindex(link).is_ok() =>
        {
            Err(TunError::Foreign(link.to_owned()))
        }
        Err(source) => Err(refused("open a queue of", link, source)),
    }
}

fn set_persistent(link: &str, queue: &File, persistent: bool) -> Result<(), TunError> {
    let what = if persistent {
        "make persistent"
    } else {
        "release"
    };
    ioctl_value(queue, libc::TUNSETPERSIST, c_int::from(persistent).into())
        .map_err(|source| refused(what, link, source))
}

/// Enables packets of up to 64 KiB and without checksums. The offload of UDP segmentation needs Linux 6.2 (`TUN_F_USO4`).
fn offload(link: &str, queue: &File) -> Result<(), TunError> {
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    let udp = TUN_F_USO4 | TUN_F_USO6;
    let set = |features: u32| ioctl_value(queue, libc::TUNSETOFFLOAD, features.into());
    set(tcp | udp)
        .or_else(|_| set(tcp))
        .map_err(|source| refused("set the offloads of", link, source))
}

/// The MTU of the link in bytes.
///
/// # Errors
/// The link does not exist, or a system call fails.
pub fn mtu(link: &str) -> Result<usize, TunError> {
    let get = || {
        let any = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let mut request = request_for(link);
        ioctl(&any, libc::SIOCGIFMTU as libc::Ioctl, &raw mut request)?;
        #[expect(unsafe_code, reason = "`ifr_ifru` is a union")]
        // SAFETY: SIOCGIFMTU has succeeded, so the union contains the MTU.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        usize::try_from(mtu).map_err(io::Error::other)
    };
    get().map_err(|source| refused("read the MTU of", link, source))
}

fn refused(what: &'static str, link: &str, source: io::Error) -> TunError {
    TunError::Request {
        what,
        link: link.to_owned(),
        source,
    }
}

/// A `struct ifreq` with the name of a link. A name that is too long is truncated, and matches no link.
fn request_for(link: &str) -> libc::ifreq {
    #[expect(unsafe_code, reason = "a C struct is initialized with zeros")]
    // SAFETY: all fields are integers or a union of integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()).take(room) {
        *to = from.cast_signed() as libc::c_char;
    }
    request
}

fn ioctl(file: &impl AsRawFd, request: libc::Ioctl, argument: *mut libc::ifreq) -> io::Result<()> {
    #[expect(unsafe_code, reason = "ioctl")]
    // SAFETY: every request that is passed here reads or writes a `struct ifreq`, which `argument` points to.
    let code = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn ioctl_value(file: &File, request: libc::Ioctl, value: i64) -> io::Result<()> {
    #[expect(unsafe_code, reason = "ioctl")]
    // SAFETY: every request that is passed here takes a number and no pointer.
    let code = unsafe { libc::ioctl(file.as_raw_fd(), request, value) };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The names of the links of this network namespace that begin with `prefix`.
///
/// # Errors
/// The links cannot be listed.
pub fn links(prefix: &str) -> io::Result<Vec<String>> {
    let all = nix::net::if_::if_nameindex()?;
    let names = all.iter().filter_map(|link| CStr::to_str(link.name()).ok());
    Ok(names
        .filter(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .collect())
}
