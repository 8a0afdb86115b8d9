//! The sockets of a tunnel.
//!
//! A tunnel has several sockets, all bound to the same address and port (`SO_REUSEPORT`). The kernel selects a socket by a hash of the
//! addresses. All datagrams of one peer therefore arrive at the same socket, in order.

use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

/// Size of the socket buffers in bytes: 100 Gbit/s for about 0.7 ms, or 64 TSO packets of 64 KiB of each of two flows.
const BUFFER: usize = 8 << 20;

/// Opens `count` sockets.
///
/// # Errors
/// The node does not have the address, another socket has the port, or a system call fails.
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
    // The same default as that of tunnels of the kernel: DF is never set, and datagrams above the path MTU are fragmented.
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
    // Forced with CAP_NET_ADMIN, else limited by net.core.rmem_max and wmem_max.
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
    #[expect(unsafe_code, reason = "nix does not have these options")]
    // SAFETY: pointer and length describe the integer `value`.
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
