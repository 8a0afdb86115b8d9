//! Sending many datagrams with one call, and many of equal size with one entry of it (`UDP_SEGMENT`).

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use crate::counters::{Counters, Drop};

/// Entries of one call.
const MESSAGES: usize = 64;
/// Pieces of memory of all entries of one call; the kernel takes as many for each (`UIO_MAXIOV`).
const PIECES: usize = 1024;
/// Datagrams of one entry (`UDP_MAX_SEGMENTS`; more since Linux 6.9).
pub const SEGMENTS: usize = 64;
/// Bytes of one entry: what IPv4 can carry.
pub const BYTES: usize = 65507;
/// UDP_SEGMENT's control message: a header and a 16 bit number, aligned.
const CONTROL: usize = 24;
/// How long a full send buffer is waited for. A network card that takes nothing for so long takes nothing at all.
const POLL_TIMEOUT: u16 = 1000;

/// Datagrams to be sent, as ranges of a buffer that comes with [`Sender::flush`].
pub struct Sender {
    messages: Vec<Message>,
    pieces: Vec<Range<usize>>,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    controls: Vec<Control>,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// An entry.
struct Message {
    to: SockaddrStorage,
    pieces: Range<usize>,
    /// How many pieces each datagram has.
    each: usize,
    /// The length of each datagram but the last, if they are to be cut.
    segment: Option<u16>,
    bytes: usize,
}

impl Message {
    const fn datagrams(&self) -> usize {
        (self.pieces.end - self.pieces.start) / self.each
    }
}

#[expect(
    unsafe_code,
    reason = "the pointers are to the heap, where they stay, and used only while it is borrowed"
)]
// SAFETY: the raw pointers are written before each call and used by it alone, from the thread that has the sender.
unsafe impl Send for Sender {}

impl Sender {
    /// Empty.
    pub fn new() -> Self {
        Self {
            messages: Vec::with_capacity(MESSAGES),
            pieces: Vec::with_capacity(PIECES),
            headers: Vec::with_capacity(PIECES),
            vectors: Vec::with_capacity(PIECES),
            controls: vec![Control([0; CONTROL]); MESSAGES],
        }
    }

    /// Whether there is room for one entry with so many pieces.
    pub fn has_room(&self, pieces: usize) -> bool {
        self.messages.len() < MESSAGES && self.pieces.len() + pieces <= PIECES
    }

    /// Adds one datagram.
    pub fn push(&mut self, to: SockaddrStorage, datagram: Range<usize>) {
        let bytes = datagram.len();
        self.pieces.push(datagram);
        self.end_message(to, 1, None, bytes);
    }

    /// Adds datagrams of `segment` bytes each but the last, each of a header and a payload.
    pub fn push_cut(
        &mut self,
        to: SockaddrStorage,
        segment: usize,
        parts: impl Iterator<Item = (Range<usize>, Range<usize>)>,
    ) {
        let mut bytes = 0;
        let start = self.pieces.len();
        for (header, payload) in parts {
            bytes += header.len() + payload.len();
            self.pieces.extend([header, payload]);
        }
        // One alone need not be cut, and the kernel would have no size to cut by.
        let many = self.pieces.len() - start > 2;
        let segment = u16::try_from(segment).ok().filter(|_| many);
        self.end_message(to, 2, segment, bytes);
    }

    fn end_message(
        &mut self,
        to: SockaddrStorage,
        each: usize,
        segment: Option<u16>,
        bytes: usize,
    ) {
        let start = self.messages.last().map_or(0, |message| message.pieces.end);
        let pieces = start..self.pieces.len();
        self.messages.push(Message {
            to,
            pieces,
            each,
            segment,
            bytes,
        });
    }

    /// Sends all that was added, and counts.
    pub fn flush(&mut self, socket: &OwnedFd, buffer: &[u8], counters: &Counters) {
        let mut next = 0;
        while next < self.messages.len() {
            next += self.send_from(next, socket, buffer, counters);
        }
        self.messages.clear();
        self.pieces.clear();
    }

    /// Sends entries from `next` on; returns how many are done with.
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
                    if message.segment.is_some() && is_about_cutting(&error) {
                        counters.refused_gso.add(1);
                        self.send_one_by_one(next, socket, buffer, counters);
                    } else {
                        counters.dropped(reason(&error), message.datagrams());
                    }
                }
                1
            }
        }
    }

    /// Sends the datagrams of an entry that the kernel does not cut: too long for the way, so they are to be fragments,
    /// or the network card has no checksums (`udp_send_skb`).
    fn send_one_by_one(
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
        let pieces = self.pieces.get(message.pieces.clone()).unwrap_or_default();
        self.vectors
            .extend(pieces.iter().map(|piece| vector(buffer, piece)));
        for datagram in self.vectors.chunks_mut(message.each) {
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
            .extend(self.pieces.iter().map(|piece| vector(buffer, piece)));
        let messages = self.messages.iter().skip(next);
        for (message, control) in messages.zip(&mut self.controls) {
            let pieces = self
                .vectors
                .get_mut(message.pieces.clone())
                .unwrap_or_default();
            let control = message.segment.map(|size| segment_control(control, size));
            self.headers.push(header(&message.to, pieces, control));
        }
    }
}

/// Whether it is the cutting that was refused.
fn is_about_cutting(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [libc::EINVAL, libc::EIO, libc::EMSGSIZE, libc::EOPNOTSUPP]
        .into_iter()
        .any(|refused| code == Some(refused))
}

fn reason(error: &io::Error) -> Drop {
    if error.kind() == io::ErrorKind::WouldBlock {
        Drop::SendBuffer
    } else {
        Drop::SendFailed
    }
}

/// Sends what can be sent, after waiting for room. Returns the number of entries, at least one.
fn send_all(headers: &mut [libc::mmsghdr], socket: &OwnedFd) -> io::Result<usize> {
    match send(headers, socket) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let mut writable = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            // Should this fail, the next attempt will.
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
        // SAFETY: `header` has let every entry point to an address, pieces and a control message that live in the sender
        // or in the borrowed buffer, with their lengths. The kernel writes nothing but the number of bytes sent.
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

/// A range of the buffer, as the kernel reads it.
fn vector(buffer: &[u8], piece: &Range<usize>) -> libc::iovec {
    let bytes = buffer.get(piece.clone()).unwrap_or_default();
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn header(
    to: &SockaddrStorage,
    pieces: &mut [libc::iovec],
    control: Option<&mut Control>,
) -> libc::mmsghdr {
    #[expect(unsafe_code, reason = "C's way to begin with nothing")]
    // SAFETY: integers and pointers, for which zero is a value.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
    header.msg_hdr.msg_namelen = to.len();
    header.msg_hdr.msg_iov = pieces.as_mut_ptr();
    header.msg_hdr.msg_iovlen = pieces.len() as _;
    if let Some(control) = control {
        header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = CONTROL as _;
    }
    header
}

/// Writes UDP_SEGMENT's control message: `struct cmsghdr`, whose length comes first, and a 16 bit number.
fn segment_control(control: &mut Control, size: u16) -> &mut Control {
    let header = size_of::<libc::cmsghdr>();
    let length = header + size_of::<u16>();
    crate::packet::put(&mut control.0, 0, length.to_ne_bytes());
    crate::packet::put(&mut control.0, header - 8, libc::SOL_UDP.to_ne_bytes());
    crate::packet::put(&mut control.0, header - 4, libc::UDP_SEGMENT.to_ne_bytes());
    crate::packet::put(&mut control.0, header, size.to_ne_bytes());
    control
}
