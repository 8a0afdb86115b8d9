//! Receiving many datagrams with one call, each of them perhaps many that the kernel has put together (`UDP_GRO`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

/// Entries of one call.
const MESSAGES: usize = 32;
/// Entries of one call while they are long: what is received should still be in the processor's cache when it is passed on.
const LONG_MESSAGES: usize = 4;
/// From this length on, on average, entries are long.
const LONG: usize = 8 << 10;
/// The kernel puts together at most this (`udp_gro_receive_segment`, `GRO_LEGACY_MAX_SIZE`).
const LENGTH: usize = 1 << 16;
/// Room for UDP_GRO's control message: a header and an integer, aligned.
const CONTROL: usize = 24;

/// The buffers of a receiver. Pages that no datagram reached are never touched, so cost nothing.
pub struct Receiver {
    buffer: Vec<u8>,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    /// Entries of the next call.
    room: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// What one entry of a call has brought.
#[derive(Debug)]
pub struct Received {
    /// Where it is in the buffer.
    pub place: Range<usize>,
    /// Who sent it, if that is an Internet address.
    pub source: Option<SocketAddr>,
    /// The length of each datagram but the last, if there is more than one.
    pub segment: Option<usize>,
    /// Whether it was longer than the buffer.
    pub truncated: bool,
}

#[expect(
    unsafe_code,
    reason = "the pointers are to the heap, where they stay, and used only while it is borrowed"
)]
// SAFETY: the raw pointers are written before each call and used by it alone, from the thread that has the receiver.
unsafe impl Send for Receiver {}

impl Receiver {
    /// With empty buffers.
    pub fn new() -> Self {
        #[expect(unsafe_code, reason = "C's way to begin with nothing")]
        // SAFETY: integers and pointers, for which zero is a value.
        let (header, name) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let vector = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            buffer: vec![0; MESSAGES * LENGTH],
            headers: vec![header; MESSAGES],
            vectors: vec![vector; MESSAGES],
            names: vec![name; MESSAGES],
            controls: vec![Control([0; CONTROL]); MESSAGES],
            room: MESSAGES,
        }
    }

    /// What [`Received::place`] is a place in.
    pub fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    /// Receives what there is. Returns the number of entries.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is nothing.
    pub fn receive(&mut self, socket: &OwnedFd) -> io::Result<usize> {
        self.prepare();
        let headers = self.headers.as_mut_ptr();
        let room = self.room.min(self.headers.len()) as libc::c_uint;
        #[expect(unsafe_code, reason = "nix allocates for every call")]
        // SAFETY: `prepare` has let every header point to a buffer, a name and a control buffer of its own, with their
        // lengths; all of them live as long as `self`, which is borrowed exclusively.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers,
                room,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let received = self.headers.iter().take(count);
        let bytes: usize = received.map(|header| header.msg_len as usize).sum();
        let are_long = bytes >= count * LONG;
        self.room = if are_long { LONG_MESSAGES } else { MESSAGES };
        Ok(count)
    }

    fn prepare(&mut self) {
        let parts = self.buffer.chunks_exact_mut(LENGTH).zip(&mut self.vectors);
        let parts = parts.zip(&mut self.names).zip(&mut self.controls);
        for (header, (((buffer, vector), name), control)) in
            self.headers.iter_mut().zip(parts).take(self.room)
        {
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = LENGTH;
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
            header.msg_hdr.msg_flags = 0;
        }
    }

    /// An entry of the last call.
    pub fn get(&self, index: usize) -> Option<Received> {
        let header = self.headers.get(index)?;
        let start = index * LENGTH;
        let length = (header.msg_len as usize).min(LENGTH);
        let control = &self.controls.get(index)?.0;
        let control = control.get(..header.msg_hdr.msg_controllen.min(CONTROL))?;
        let segment = gro_size(control).filter(|size| *size > 0 && *size < length);
        Some(Received {
            place: start..start + length,
            source: source(self.names.get(index)?),
            segment,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }
}

/// The number in UDP_GRO's control message: `struct cmsghdr` and an int. There is no other kind of message.
fn gro_size(control: &[u8]) -> Option<usize> {
    let header = size_of::<libc::cmsghdr>();
    let level = i32::from_ne_bytes(*control.get(header - 8..)?.first_chunk()?);
    let kind = i32::from_ne_bytes(*control.get(header - 4..)?.first_chunk()?);
    let size = i32::from_ne_bytes(*control.get(header..)?.first_chunk()?);
    (level == libc::SOL_UDP && kind == libc::UDP_GRO).then_some(())?;
    usize::try_from(size).ok()
}

fn source(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let family = i32::from(name.ss_family);
    let name = &raw const *name;
    match family {
        libc::AF_INET => {
            #[expect(unsafe_code, reason = "C's way to have kinds of addresses")]
            // SAFETY: the storage has room and alignment for every kind of address, and the family says it is this one.
            let name = unsafe { *name.cast::<libc::sockaddr_in>() };
            let address = IpAddr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(address, u16::from_be(name.sin_port)))
        }
        libc::AF_INET6 => {
            #[expect(unsafe_code, reason = "C's way to have kinds of addresses")]
            // SAFETY: as above.
            let name = unsafe { *name.cast::<libc::sockaddr_in6>() };
            let address = IpAddr::from(name.sin6_addr.s6_addr);
            Some(SocketAddr::new(address, u16::from_be(name.sin6_port)))
        }
        _ => None,
    }
}
