//! Traffic through a tunnel, compared with the sent data at the receiver.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Node;

/// Bytes that depend on their position in the stream.
fn pattern(at: usize, bytes: &mut [u8]) {
    for (offset, byte) in bytes.iter_mut().enumerate() {
        let place = (at + offset) as u64;
        *byte = (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    }
}

fn socket(node: &Node, v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(node.inner(v6).parse::<IpAddr>().unwrap(), port)
}

/// Sends a stream and compares every byte at the other end.
pub fn tcp(from: &Node, to: &Node, v6: bool, bytes: usize) {
    let listener = to
        .namespace
        .run(|| TcpListener::bind(socket(to, v6, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let receiver = thread::spawn(move || receive(&listener.accept().unwrap().0, bytes));
    let mut stream = from.namespace.run(|| TcpStream::connect(address).unwrap());
    stream
        .set_write_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut chunk = vec![0; 1 << 17];
    for at in (0..bytes).step_by(chunk.len()) {
        let length = chunk.len().min(bytes - at);
        pattern(at, &mut chunk[..length]);
        stream.write_all(&chunk[..length]).unwrap();
    }
    drop(stream);
    receiver.join().unwrap();
}

fn receive(mut stream: &TcpStream, bytes: usize) {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let (mut chunk, mut expected, mut at) = (vec![0; 1 << 17], vec![0; 1 << 17], 0);
    loop {
        let length = stream.read(&mut chunk).unwrap();
        if length == 0 {
            break;
        }
        pattern(at, &mut expected[..length]);
        assert!(
            chunk[..length] == expected[..length],
            "other bytes near {at}"
        );
        at += length;
    }
    assert_eq!(at, bytes);
}

/// Sends datagrams of many sizes, and requires an echo of each one.
pub fn udp(from: &Node, to: &Node, v6: bool) {
    let server = to
        .namespace
        .run(|| UdpSocket::bind(socket(to, v6, 0)).unwrap());
    let address = server.local_addr().unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(3)))
        .unwrap();
    let sizes: Vec<usize> = (0..400)
        .map(|n| n * 37 % 1400)
        .chain([1400, 1472, 3000, 9000, 40000])
        .collect();
    let count = sizes.len();
    let echo = thread::spawn(move || {
        let mut bytes = vec![0; 65536];
        for _ in 0..count {
            let (length, sender) = server.recv_from(&mut bytes).unwrap();
            server.send_to(&bytes[..length], sender).unwrap();
        }
    });
    let client = from
        .namespace
        .run(|| UdpSocket::bind(socket(from, v6, 0)).unwrap());
    client.connect(address).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(3)))
        .unwrap();
    let (mut sent, mut received) = (vec![0; 65536], vec![0; 65536]);
    for size in sizes {
        pattern(size, &mut sent[..size]);
        client.send(&sent[..size]).unwrap();
        let length = client
            .recv(&mut received)
            .expect("receive the echo of a datagram");
        assert!(
            received[..length] == sent[..size],
            "other bytes in a datagram of {size}"
        );
    }
    echo.join().unwrap();
}

/// Pings of a background process, one each millisecond.
pub struct Pings {
    child: Child,
    count: usize,
}

impl Pings {
    pub fn start(from: &Node, to: &str, count: usize) -> Self {
        let mut command = Command::new("ping");
        command.args(["-q", "-i", "0.001", "-W", "2", "-c", &count.to_string(), to]);
        command.stdout(Stdio::piped());
        let child = from.namespace.run(|| command.spawn().unwrap());
        Self { child, count }
    }

    /// The number of pings without an answer. A second answer fails the test.
    pub fn lost(self) -> usize {
        let output = self.child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("duplicates"), "{text}");
        let mut words = text
            .split_once(" packets transmitted, ")
            .unwrap()
            .1
            .split(' ');
        let received: usize = words.next().unwrap().parse().unwrap();
        self.count - received
    }
}

/// A stream that continues until [`Stream::end`], and is compared at the receiver.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<usize>,
    receiver: JoinHandle<usize>,
}

impl Stream {
    /// A `pause` after each 64 KiB limits the CPU load.
    pub fn start(from: &Node, to: &Node, v6: bool, pause: Duration) -> Self {
        let listener = to
            .namespace
            .run(|| TcpListener::bind(socket(to, v6, 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let stream = from.namespace.run(|| TcpStream::connect(address).unwrap());
        let accepted = listener.accept().unwrap().0;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || send_until(stream, &stopped, pause));
        let receiver = thread::spawn(move || {
            let (mut at, mut chunk, mut expected) = (0, vec![0; 1 << 16], vec![0; 1 << 16]);
            let mut accepted = accepted;
            accepted
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            loop {
                let length = accepted.read(&mut chunk).expect("receive from the stream");
                if length == 0 {
                    return at;
                }
                pattern(at, &mut expected[..length]);
                assert!(
                    chunk[..length] == expected[..length],
                    "other bytes near {at}"
                );
                at += length;
            }
        });
        Self {
            stop,
            sender,
            receiver,
        }
    }

    /// Ends the stream and returns the number of received bytes, which is the number of sent bytes.
    pub fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        assert_eq!(self.receiver.join().unwrap(), sent);
        sent
    }
}

fn send_until(mut stream: TcpStream, stop: &AtomicBool, pause: Duration) -> usize {
    stream
        .set_write_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let (mut at, mut chunk) = (0, vec![0; 1 << 16]);
    // The limit ends the stream of a failed test.
    while !stop.load(Ordering::Relaxed) && at < 4 << 30 {
        pattern(at, &mut chunk);
        stream.write_all(&chunk).expect("send to the stream");
        at += chunk.len();
        thread::sleep(pause);
    }
    at
}
