//! Throughput and CPU time of TCP streams between two pods.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use netweft_e2e::harness::process;

use crate::namespace::Namespace;
use crate::numbers::to_f64;

/// Bytes of one write or read call.
const CHUNK: usize = 256 << 10;
/// A stream without progress for this time fails.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The load of one run.
#[derive(Clone, Copy)]
pub struct Load {
    /// Number of parallel streams.
    pub streams: u64,
    /// Maximal duration.
    pub time: Duration,
    /// Maximal number of bytes of all streams together.
    pub bytes: u64,
}

/// The result of a run.
pub struct Outcome {
    pub gigabits_per_second: f64,
    pub cpu_seconds_per_gigabyte: f64,
}

impl Load {
    /// Sends from one pod to the other, which has `address`. The CPU time includes `processes`, the process IDs of a relay.
    pub fn run(
        &self,
        source: &Namespace,
        destination: &Namespace,
        address: Ipv4Addr,
        processes: &[u32],
    ) -> anyhow::Result<Outcome> {
        let listener = destination
            .run(|| Ok(TcpListener::bind((address, 0))?))
            .context("listen")?;
        let server = listener.local_addr()?;
        let before = cpu(processes)?;
        let started = Instant::now();
        let received = thread::scope(|scope| {
            let receiver = scope.spawn(|| receive_all(&listener, self.streams));
            let sent = source.run(|| self.send_all(server));
            let received = receiver
                .join()
                .map_err(|_| anyhow!("a receiver panicked"))?;
            sent.and(received)
        })?;
        let (took, used) = (started.elapsed().as_secs_f64(), cpu(processes)? - before);
        let bytes = to_f64(received);
        Ok(Outcome {
            gigabits_per_second: bytes * 8.0 / took / 1e9,
            cpu_seconds_per_gigabyte: used / (bytes / 1e9),
        })
    }

    fn send_all(&self, server: SocketAddr) -> anyhow::Result<()> {
        let streams = (0..self.streams).map(|_| TcpStream::connect_timeout(&server, TIMEOUT));
        let streams = streams.collect::<Result<Vec<_>, _>>().context("connect")?;
        let end = Instant::now() + self.time;
        let share = self.bytes / self.streams;
        thread::scope(|scope| {
            let senders: Vec<_> = streams
                .into_iter()
                .map(|stream| scope.spawn(move || send(stream, share, end)))
                .collect();
            senders
                .into_iter()
                .try_for_each(|sender| sender.join().map_err(|_| anyhow!("a sender panicked"))?)
        })
    }
}

fn send(mut stream: TcpStream, bytes: u64, end: Instant) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(TIMEOUT))?;
    let (chunk, mut left) = (vec![0x5a; CHUNK], bytes);
    while left > 0 && Instant::now() < end {
        stream.write_all(&chunk).context("send")?;
        left = left.saturating_sub(CHUNK as u64);
    }
    Ok(())
}

/// Receives all streams. Returns the number of bytes.
fn receive_all(listener: &TcpListener, streams: u64) -> anyhow::Result<u64> {
    thread::scope(|scope| {
        let mut receivers = Vec::new();
        for _ in 0..streams {
            let (stream, _) = listener.accept()?;
            receivers.push(scope.spawn(move || receive(stream)));
        }
        let bytes = receivers.into_iter().map(|receiver| {
            receiver
                .join()
                .map_err(|_| anyhow!("a receiver panicked"))?
        });
        bytes.sum()
    })
}

fn receive(mut stream: TcpStream) -> anyhow::Result<u64> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    let (mut chunk, mut bytes) = (vec![0; CHUNK], 0);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(read) => bytes += read as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
}

/// CPU time of this process, of `processes`, and of interrupts of all processes, in seconds.
fn cpu(processes: &[u32]) -> anyhow::Result<f64> {
    let all = processes.iter().copied().chain([std::process::id()]);
    let used = all.map(process::cpu).sum::<anyhow::Result<Duration>>()?;
    Ok((used + process::interrupts()?).as_secs_f64())
}
