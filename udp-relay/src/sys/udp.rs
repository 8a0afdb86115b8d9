//! The sockets of a tunnel.
//!
//! There are several, all bound to the same address and port (`SO_REUSEPORT`): the kernel chooses one by the addresses, so
//! that all datagrams of one peer come by the same socket, in their order.

use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

/// What a socket may hold: 100 Gbit/s for a millisecond, or 64 full TSO packets of each of a few flows.
const BUFFER: usize = 8 << 20;

/// Opens `count` sockets.
///
/// # Errors
/// The kernel refuses: the address is not this node's, or another socket has the port.
pub fn open(local: IpAddr, port: u16, count: usize) -> io::Result<Vec<OwnedFd>> {
    (0..count)
        .map(|_| open_one(SocketAddr::new(local, port)))
        .collect()
}

fn open_one(local: SocketAddr) -> io::Result<OwnedFd> {
    let family = if local.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = socket(family, SockType::Datagram, flags, None)?;
    setsockopt(&opened, sockopt::ReusePort, &true)?;
    // As the kernel's tunnels by default: what is too long for the way is cut into fragments, so never DF.
    match local {
        SocketAddr::V4(_) => set(
            &opened,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
        )?,
        SocketAddr::V6(_) => {
            set(
                &opened,
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DONT,
            )?;
        }
    }
    set(&opened, libc::SOL_UDP, libc::UDP_GRO, 1)?;
    // Forced where we may (CAP_NET_ADMIN), else as far as net.core.rmem_max and wmem_max allow.
    if setsockopt(&opened, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&opened, sockopt::RcvBuf, &BUFFER)?;
    }
    if setsockopt(&opened, sockopt::SndBufForce, &BUFFER).is_err() {
        setsockopt(&opened, sockopt::SndBuf, &BUFFER)?;
    }
    bind(opened.as_raw_fd(), &SockaddrStorage::from(local))?;
    Ok(opened)
}

fn set(socket: &OwnedFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as libc::socklen_t;
    #[expect(unsafe_code, reason = "options that nix does not have")]
    // SAFETY: the option's value is the integer that the pointer and the length describe.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
