//! Nodes made of network namespaces without an external connection, on one segment, each with the real relay. The network
//! does the agent's work on a tunnel's link (MTU, state, addresses, routes).
//!
//! ```text
//!   node 1             node 2             non-peer
//!   192.0.2.1          192.0.2.2          192.0.2.9
//!   2001:db8::1        2001:db8::2        2001:db8::9
//!      └─────────────── bridge ──────────────┘       MTU 1500
//!   inside: 10.244.N.0/24, fd00:244:N::/64, the node itself .1 and ::1
//! ```

#![allow(dead_code, reason = "no test uses the whole module")]

pub mod verified_traffic;

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netweft_udp_relay::config::{PeerConfig, RelayConfig, TunnelConfig, VERSION};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

pub const LINK: &str = "nw-udp8285";
pub const PORT: u16 = 8285;

/// A network namespace that exists as long as its descriptor is open.
pub struct Namespace(OwnedFd);

impl Namespace {
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("these tests make network namespaces: run them as root");
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        };
        let namespace = Self(thread::scope(|scope| scope.spawn(make).join().unwrap()));
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `work` in the namespace, on a separate thread.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn command(&self, line: &str) -> (bool, String) {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        let output = self.run(|| command.output().expect(line));
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    pub fn ip(&self, arguments: &str) -> String {
        let (success, text) = self.command(&format!("ip {arguments}"));
        assert!(success, "ip {arguments}: {text}");
        text
    }

    pub fn index_of(&self, link: &str) -> u32 {
        self.run(|| nix::net::if_::if_nametoindex(link).unwrap())
    }

    pub fn has_link(&self, link: &str) -> bool {
        self.run(|| nix::net::if_::if_nametoindex(link).is_ok())
    }
}

/// Waits until a condition is met, for 15 s at most.
pub fn eventually(condition: &str, mut is_met: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    while !is_met() {
        assert!(Instant::now() < end, "{condition}: not within 15 s");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The segment and its nodes.
pub struct RelayNetwork {
    pub segment: Namespace,
    pub nodes: [Node; 2],
    pub non_peer: Namespace,
}

impl RelayNetwork {
    /// Two nodes without relays.
    pub fn new(outer_v6: bool) -> Self {
        let segment = Namespace::new();
        segment.ip("link add br0 type bridge");
        segment.ip("link set br0 up");
        let nodes = [1, 2].map(|number| Node {
            namespace: host_on(&segment, number),
            dir: tempfile::tempdir_in("/dev/shm").unwrap(),
            number,
            outer_v6,
        });
        Self {
            nodes,
            non_peer: host_on(&segment, 9),
            segment,
        }
    }

    /// Two nodes with serving relays.
    pub fn running(outer_v6: bool) -> (Self, [Relay; 2]) {
        let network = Self::new(outer_v6);
        let [one, two] = &network.nodes;
        let relays = [one, two].map(|node| {
            node.configure(&node.config());
            node.start()
        });
        for node in [one, two] {
            node.await_ready();
            node.set_up_link();
        }
        let to = two.inner(false);
        eventually("the first ping", || one.pings(&to, ""));
        (network, relays)
    }
}

fn host_on(segment: &Namespace, number: u8) -> Namespace {
    let namespace = Namespace::new();
    let port = format!("port{number}");
    // The path uses the PID because `ip` is another process.
    let other = std::os::fd::AsRawFd::as_raw_fd(&namespace.0);
    let path = format!("/proc/{}/fd/{other}", std::process::id());
    segment.ip(&format!(
        "link add {port} type veth peer name eth0 netns {path}"
    ));
    segment.ip(&format!("link set {port} master br0 up"));
    namespace.ip("link set eth0 up");
    namespace.ip(&format!("address add 192.0.2.{number}/24 dev eth0"));
    namespace.ip(&format!("address add 2001:db8::{number}/64 dev eth0 nodad"));
    namespace
}

/// A node.
pub struct Node {
    pub namespace: Namespace,
    dir: TempDir,
    pub number: u8,
    outer_v6: bool,
}

impl Node {
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The address on the segment.
    pub fn outer(&self) -> IpAddr {
        outer(self.number, self.outer_v6)
    }

    /// The address in the tunnel.
    pub fn inner(&self, v6: bool) -> String {
        inner(self.number, v6)
    }

    pub fn mtu(&self) -> usize {
        1500 - if self.outer_v6 { 48 } else { 28 }
    }

    /// One tunnel, to the other node.
    pub fn config(&self) -> RelayConfig {
        let peer = 3 - self.number;
        let blocks = [
            format!("10.244.{peer}.0/24"),
            format!("fd00:244:{peer}::/64"),
        ];
        let peers = vec![PeerConfig {
            address: outer(peer, self.outer_v6),
            blocks: blocks.map(|block| block.parse().unwrap()).to_vec(),
        }];
        let tunnel = TunnelConfig {
            link: LINK.to_owned(),
            port: PORT,
            local: self.outer(),
            peers,
        };
        RelayConfig {
            version: VERSION,
            tunnels: vec![tunnel],
        }
    }

    pub fn configure(&self, config: &RelayConfig) {
        config.write(self.dir()).unwrap();
    }

    /// Does the agent's work on the link.
    pub fn set_up_link(&self) {
        let peer = 3 - self.number;
        self.namespace
            .ip(&format!("link set {LINK} mtu {} up", self.mtu()));
        for (own, block, nodad) in [
            (
                format!("{}/32", self.inner(false)),
                format!("10.244.{peer}.0/24"),
                "",
            ),
            (
                format!("{}/128", self.inner(true)),
                format!("fd00:244:{peer}::/64"),
                " nodad",
            ),
        ] {
            self.namespace
                .ip(&format!("address replace {own} dev {LINK}{nodad}"));
            self.namespace.ip(&format!(
                "route replace {block} dev {LINK} src {}",
                own.split('/').next().unwrap()
            ));
        }
    }

    fn relay(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netweft-udp-relay"));
        command.env("NETWEFT_LOG", "debug");
        command
    }

    /// Starts one more relay.
    pub fn start(&self) -> Relay {
        let log = self.dir().with_extension("log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = self.relay();
        command.args([
            "run",
            "--queues=2",
            "--admin-address=127.0.0.1:9472",
            "--run-dir",
        ]);
        command.arg(self.dir()).stdout(Stdio::null()).stderr(log);
        Relay(self.namespace.run(|| command.spawn().unwrap()))
    }

    /// The log of all relays of this node.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().with_extension("log")).unwrap()
    }

    /// Whether `ready` succeeds, and its error output.
    pub fn ready(&self) -> (bool, String) {
        self.probe("ready")
    }

    /// Whether `alive` succeeds, and its error output.
    pub fn alive(&self) -> (bool, String) {
        self.probe("alive")
    }

    fn probe(&self, verb: &str) -> (bool, String) {
        let mut command = self.relay();
        command.arg(verb).arg("--run-dir").arg(self.dir());
        let output = self.namespace.run(|| command.output().unwrap());
        (
            output.status.success(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    pub fn await_ready(&self) {
        eventually("the relay is ready", || self.ready().0);
    }

    pub fn await_log(&self, text: &str, times: usize) {
        eventually(text, || self.log().matches(text).count() >= times);
    }

    pub fn pings(&self, to: &str, more: &str) -> bool {
        self.namespace
            .command(&format!("ping -c 1 -W 1 {more} {to}"))
            .0
    }

    /// A number from the relay's metrics.
    pub fn metric(&self, name: &str, labels: &str) -> u64 {
        let text = self.metrics();
        let start = format!("netweft_udp_relay_{name}_total{{link=\"{LINK}\",{labels}}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("{start} is not in {text}"))
            .parse()
            .unwrap()
    }

    pub fn drops(&self, reason: &str) -> u64 {
        self.metric("drops", &format!("reason=\"{reason}\""))
    }

    fn metrics(&self) -> String {
        use std::io::{Read, Write};
        let request = || -> std::io::Result<String> {
            let mut stream = std::net::TcpStream::connect("127.0.0.1:9472")?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let mut text = String::new();
        eventually("metrics are served", || {
            self.namespace.run(request).is_ok_and(|found| {
                text = found;
                true
            })
        });
        text
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let log = self.dir().with_extension("log");
        if thread::panicking() {
            eprintln!(
                "log of node {}:\n{}",
                self.number,
                fs::read_to_string(&log).unwrap_or_default()
            );
        }
        let _ = fs::remove_file(log);
    }
}

pub fn outer(number: u8, v6: bool) -> IpAddr {
    let text = if v6 {
        format!("2001:db8::{number}")
    } else {
        format!("192.0.2.{number}")
    };
    text.parse().unwrap()
}

pub fn inner(number: u8, v6: bool) -> String {
    if v6 {
        format!("fd00:244:{number}::1")
    } else {
        format!("10.244.{number}.1")
    }
}

/// A running relay.
pub struct Relay(Child);

impl Relay {
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.0.wait().unwrap();
    }

    /// Sends SIGTERM and waits for the end of the relay.
    pub fn stop(mut self) {
        let started = Instant::now();
        self.signal(Signal::SIGTERM);
        assert!(self.0.wait().unwrap().success());
        assert!(started.elapsed() < Duration::from_secs(2), "stops promptly");
    }

    /// Whether the relay has ended.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
