//! Sending of many messages with one call. A message has one datagram, or several of equal size (`UDP_SEGMENT`).

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use crate::counters::{Counters, DropReason};

/// Maximum number of messages of one call.
const MAX_MESSAGES: usize = 64;
/// Maximum number of memory ranges of all messages of one call. The kernel allows as many for each message (`UIO_MAXIOV`).
const MAX_RANGES: usize = 1024;
/// Maximum number of datagrams of one message (`UDP_MAX_SEGMENTS`, which is higher since Linux 6.9).
pub const MAX_SEGMENTS: usize = 64;
/// Maximum length of one message in bytes: the maximum UDP payload over IPv4.
pub const MAX_MESSAGE_BYTES: usize = 65507;
/// Length of the control message of `UDP_SEGMENT` in bytes: a header and a 16-bit number, aligned.
const CONTROL_LENGTH: usize = 24;
/// Time limit of the wait for space in a full send buffer, in milliseconds. Afterwards, datagrams are dropped.
const POLL_TIMEOUT: u16 = 1000;

/// A batch of datagrams, as ranges of a buffer that is passed to [`Sender::flush`].
pub struct Sender {
    messages: Vec<Message>,
    ranges: Vec<Range<usize>>,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    controls: Vec<Control>,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LENGTH]);

/// A message of a call: one datagram, or several of equal size.
struct Message {
    to: SockaddrStorage,
    ranges: Range<usize>,
    /// Number of ranges of each datagram.
    ranges_per_datagram: usize,
    /// The length of each datagram except the last in bytes, for a message with `UDP_SEGMENT`.
    segment: Option<u16>,
    bytes: usize,
}

impl Message {
    const fn datagrams(&self) -> usize {
        (self.ranges.end - self.ranges.start) / self.ranges_per_datagram
    }
}

#[expect(
    unsafe_code,
    reason = "the pointers refer to the heap, and are used only during a borrow of the sender"
)]
// SAFETY: the raw pointers are written before each call and used only by the call, in the thread that owns the sender.
unsafe impl Send for Sender {}

impl Sender {
    /// An empty batch.
    pub fn new() -> Self {
        Self {
            messages: Vec::with_capacity(MAX_MESSAGES),
            ranges: Vec::with_capacity(MAX_RANGES),
            headers: Vec::with_capacity(MAX_RANGES),
            vectors: Vec::with_capacity(MAX_RANGES),
            controls: vec![Control([0; CONTROL_LENGTH]); MAX_MESSAGES],
        }
    }

    /// Whether the batch has room for a message with `ranges` ranges.
    pub fn has_room(&self, ranges: usize) -> bool {
        self.messages.len() < MAX_MESSAGES && self.ranges.len() + ranges <= MAX_RANGES
    }

    /// Adds one datagram.
    pub fn push(&mut self, to: SockaddrStorage, datagram: Range<usize>) {
        let bytes = datagram.len();
        self.ranges.push(datagram);
        self.end_message(to, 1, None, bytes);
    }

    /// Adds a message with datagrams of a header and a payload. Each datagram except the last has `segment` bytes.
    pub fn push_segments(
        &mut self,
        to: SockaddrStorage,
        segment: usize,
        parts: impl Iterator<Item = (Range<usize>, Range<usize>)>,
    ) {
        let mut bytes = 0;
        let start = self.ranges.len();
        for (header, payload) in parts {
            bytes += header.len() + payload.len();
            self.ranges.extend([header, payload]);
        }
        // A single datagram needs no UDP_SEGMENT.
        let has_several = self.ranges.len() - start > 2;
        let segment = u16::try_from(segment).ok().filter(|_| has_several);
        self.end_message(to, 2, segment, bytes);
    }

    fn end_message(
        &mut self,
        to: SockaddrStorage,
        ranges_per_datagram: usize,
        segment: Option<u16>,
        bytes: usize,
    ) {
        let start = self.messages.last().map_or(0, |message| message.ranges.end);
        let ranges = start..self.ranges.len();
        self.messages.push(Message {
            to,
            ranges,
            ranges_per_datagram,
            segment,
            bytes,
        });
    }

    /// Sends all messages of the batch, and counts sent and dropped packets.
    pub fn flush(&mut self, socket: &OwnedFd, buffer: &[u8], counters: &Counters) {
        let mut next = 0;
        while next < self.messages.len() {
            next += self.send_from(next, socket, buffer, counters);
        }
        self.messages.clear();
        self.ranges.clear();
    }

    /// Sends messages from `next` on. Returns the number of messages that were sent or dropped.
    fn send_from(
        &mut self,
        next: usize,
        socket: &OwnedFd,
        buffer: &[u8],
        counters: &Counters,
    ) -> usize {
        self.prepare(next, buffer);
        match send_all(&mut self.headers, socket) {
            Ok(sent) => {
                for message in self.messages.iter().skip(next).take(sent) {
                    counters.packets.add(message.datagrams());
                    counters.bytes.add(message.bytes);
                    counters.writes.add(1);
                }
                sent.max(1)
            }
            Err(error) => {
                if let Some(message) = self.messages.get(next) {
                    if message.segment.is_some() && is_gso_refused(&error) {
                        counters.refused_gso.add(1);
                        self.send_without_gso(next, socket, buffer, counters);
                    } else {
                        counters.dropped(reason(&error), message.datagrams());
                    }
                }
                1
            }
        }
    }

    /// Sends the datagrams of a message one by one, after the kernel has refused `UDP_SEGMENT`: the datagrams exceed the path MTU and
    /// need fragments, or the network card has no checksum offload (`udp_send_skb`).
    fn send_without_gso(
        &mut self,
        index: usize,
        socket: &OwnedFd,
        buffer: &[u8],
        counters: &Counters,
    ) {
        let Some(message) = self.messages.get(index) else {
            return;
        };
        let total = message.datagrams();
        self.vectors.clear();
        self.headers.clear();
        let ranges = self.ranges.get(message.ranges.clone()).unwrap_or_default();
        self.vectors
            .extend(ranges.iter().map(|range| vector(buffer, range)));
        for datagram in self.vectors.chunks_mut(message.ranges_per_datagram) {
            self.headers.push(header(&message.to, datagram, None));
        }
        let mut done = 0;
        while let Some(rest) = self.headers.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match send_all(rest, socket) {
                Ok(sent) => {
                    let bytes = rest.iter().take(sent).map(|header| header.msg_len as usize);
                    counters.bytes.add(bytes.sum());
                    counters.packets.add(sent);
                    counters.writes.add(sent);
                    done += sent.max(1);
                }
                Err(error) => {
                    counters.dropped(reason(&error), 1);
                    done += 1;
                }
            }
        }
        debug_assert_eq!(done, total);
    }

    fn prepare(&mut self, next: usize, buffer: &[u8]) {
        self.vectors.clear();
        self.headers.clear();
        self.vectors
            .extend(self.ranges.iter().map(|range| vector(buffer, range)));
        let messages = self.messages.iter().skip(next);
        for (message, control) in messages.zip(&mut self.controls) {
            let ranges = self
                .vectors
                .get_mut(message.ranges.clone())
                .unwrap_or_default();
            let control = message.segment.map(|size| segment_control(control, size));
            self.headers.push(header(&message.to, ranges, control));
        }
    }
}

/// Whether the kernel has refused `UDP_SEGMENT`.
fn is_gso_refused(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [libc::EINVAL, libc::EIO, libc::EMSGSIZE, libc::EOPNOTSUPP]
        .into_iter()
        .any(|refused| code == Some(refused))
}

fn reason(error: &io::Error) -> DropReason {
    if error.kind() == io::ErrorKind::WouldBlock {
        DropReason::SendBuffer
    } else {
        DropReason::SendFailed
    }
}

/// Sends as many messages as possible, after a wait if the send buffer is full. Returns the number of messages, at least one.
fn send_all(headers: &mut [libc::mmsghdr], socket: &OwnedFd) -> io::Result<usize> {
    match send(headers, socket) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let mut writable = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            // After an error of poll, the next attempt fails with the same error as the first.
            let _ = poll(&mut writable, PollTimeout::from(POLL_TIMEOUT));
            send(headers, socket)
        }
        sent => sent,
    }
}

fn send(headers: &mut [libc::mmsghdr], socket: &OwnedFd) -> io::Result<usize> {
    let count = headers.len() as libc::c_uint;
    loop {
        #[expect(unsafe_code, reason = "nix allocates for every call")]
        // SAFETY: `header` has set every header to an address, ranges and a control message that live in the sender
        // or in the borrowed buffer, with their lengths. The kernel writes only the number of sent bytes.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
            )
        };
        match usize::try_from(sent).map_err(|_| io::Error::last_os_error()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            sent => return sent,
        }
    }
}

/// The iovec of a range of the buffer.
fn vector(buffer: &[u8], range: &Range<usize>) -> libc::iovec {
    let bytes = buffer.get(range.clone()).unwrap_or_default();
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn header(
    to: &SockaddrStorage,
    ranges: &mut [libc::iovec],
    control: Option<&mut Control>,
) -> libc::mmsghdr {
    #[expect(unsafe_code, reason = "a C struct is initialized with zeros")]
    // SAFETY: all fields are integers or pointers, for which zero is valid.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
    header.msg_hdr.msg_namelen = to.len();
    header.msg_hdr.msg_iov = ranges.as_mut_ptr();
    header.msg_hdr.msg_iovlen = ranges.len() as _;
    if let Some(control) = control {
        header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = CONTROL_LENGTH as _;
    }
    header
}

/// Writes the control message of `UDP_SEGMENT`: `struct cmsghdr`, which begins with the length, and a 16-bit number.
fn segment_control(control: &mut Control, size: u16) -> &mut Control {
    let header = size_of::<libc::cmsghdr>();
    let length = header + size_of::<u16>();
    crate::packet::put(&mut control.0, 0, length.to_ne_bytes());
    crate::packet::put(&mut control.0, header - 8, libc::SOL_UDP.to_ne_bytes());
    crate::packet::put(&mut control.0, header - 4, libc::UDP_SEGMENT.to_ne_bytes());
    crate::packet::put(&mut control.0, header, size.to_ne_bytes());
    control
}
