//! Receiving of many messages with one call. A message has one datagram, or several that the kernel has coalesced (`UDP_GRO`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

/// Maximum number of messages of one call.
const MAX_MESSAGES: usize = 32;
/// Maximum number of long messages of one call, so that the data is still in the CPU cache when it is forwarded.
const MAX_LONG_MESSAGES: usize = 4;
/// Minimum average length of long messages in bytes.
const LONG_LENGTH: usize = 8 << 10;
/// Maximum length of a message with coalesced datagrams in bytes (`udp_gro_receive_segment`, `GRO_LEGACY_MAX_SIZE`).
const MESSAGE_LENGTH: usize = 1 << 16;
/// Length of the control message of `UDP_GRO` in bytes: a header and an integer, aligned.
const CONTROL_LENGTH: usize = 24;

/// The buffers of a receiver. Pages that no datagram has reached use no memory.
pub struct Receiver {
    buffer: Vec<u8>,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    /// Maximum number of messages of the next call.
    limit: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LENGTH]);

/// A received message.
#[derive(Debug)]
pub struct Received {
    /// The range of the message in the buffer.
    pub range: Range<usize>,
    /// The source address, if it is an IPv4 or IPv6 address.
    pub source: Option<SocketAddr>,
    /// The length of each datagram except the last in bytes, if there are several.
    pub segment: Option<usize>,
    /// Whether the message was longer than its buffer.
    pub truncated: bool,
}

#[expect(
    unsafe_code,
    reason = "the pointers refer to the heap, and are used only during a borrow of the receiver"
)]
// SAFETY: the raw pointers are written before each call and used only by the call, in the thread that owns the receiver.
unsafe impl Send for Receiver {}

impl Receiver {
    /// With empty buffers.
    pub fn new() -> Self {
        #[expect(unsafe_code, reason = "C structs are initialized with zeros")]
        // SAFETY: all fields are integers or pointers, for which zero is valid.
        let (header, name) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let vector = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            buffer: vec![0; MAX_MESSAGES * MESSAGE_LENGTH],
            headers: vec![header; MAX_MESSAGES],
            vectors: vec![vector; MAX_MESSAGES],
            names: vec![name; MAX_MESSAGES],
            controls: vec![Control([0; CONTROL_LENGTH]); MAX_MESSAGES],
            limit: MAX_MESSAGES,
        }
    }

    /// The buffer to which [`Received::range`] refers.
    pub fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    /// Receives the available messages. Returns their number.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] without a message, else the error of recvmmsg(2).
    pub fn receive(&mut self, socket: &OwnedFd) -> io::Result<usize> {
        self.prepare();
        let headers = self.headers.as_mut_ptr();
        let limit = self.limit.min(self.headers.len()) as libc::c_uint;
        #[expect(unsafe_code, reason = "nix allocates for every call")]
        // SAFETY: `prepare` has set every header to a separate buffer, name and control buffer, with their lengths. All of
        // them live as long as `self`, which is borrowed exclusively.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers,
                limit,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let received = self.headers.iter().take(count);
        let bytes: usize = received.map(|header| header.msg_len as usize).sum();
        let are_long = bytes >= count * LONG_LENGTH;
        self.limit = if are_long {
            MAX_LONG_MESSAGES
        } else {
            MAX_MESSAGES
        };
        Ok(count)
    }

    fn prepare(&mut self) {
        let parts = self
            .buffer
            .chunks_exact_mut(MESSAGE_LENGTH)
            .zip(&mut self.vectors);
        let parts = parts.zip(&mut self.names).zip(&mut self.controls);
        for (header, (((buffer, vector), name), control)) in
            self.headers.iter_mut().zip(parts).take(self.limit)
        {
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = MESSAGE_LENGTH;
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL_LENGTH as _;
            header.msg_hdr.msg_flags = 0;
        }
    }

    /// A message of the last call.
    pub fn get(&self, index: usize) -> Option<Received> {
        let header = self.headers.get(index)?;
        let start = index * MESSAGE_LENGTH;
        let length = (header.msg_len as usize).min(MESSAGE_LENGTH);
        let control = &self.controls.get(index)?.0;
        let control = control.get(..header.msg_hdr.msg_controllen.min(CONTROL_LENGTH))?;
        let segment = gro_size(control).filter(|size| *size > 0 && *size < length);
        Some(Received {
            range: start..start + length,
            source: source(self.names.get(index)?),
            segment,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }
}

/// The segment size in the control message of `UDP_GRO`: `struct cmsghdr` and an int. The socket enables no other control message.
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
            #[expect(unsafe_code, reason = "sockaddr_storage is cast by its family")]
            // SAFETY: the storage has size and alignment for every address type, and the family is that of this type.
            let name = unsafe { *name.cast::<libc::sockaddr_in>() };
            let address = IpAddr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(address, u16::from_be(name.sin_port)))
        }
        libc::AF_INET6 => {
            #[expect(unsafe_code, reason = "sockaddr_storage is cast by its family")]
            // SAFETY: as above.
            let name = unsafe { *name.cast::<libc::sockaddr_in6>() };
            let address = IpAddr::from(name.sin6_addr.s6_addr);
            Some(SocketAddr::new(address, u16::from_be(name.sin6_port)))
        }
        _ => None,
    }
}
