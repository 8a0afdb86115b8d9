//! Dumps of tables that change during the dump.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test may panic")]

mod netns_fixture;

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netns_fixture::{batch, churn_lines, in_netns, ip};
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::netns;
use netweft_netstate::rtnl::Rtnl;

/// Every dump has all objects of a constant set, while thousands of others are added and deleted.
#[test]
fn netns_dump_during_churn_is_complete() {
    for kind in ["route", "route6", "address", "neighbour", "fdb"] {
        in_netns(|| async { dump_during_churn(kind).await });
    }
}

async fn dump_during_churn(kind: &str) {
    ip("link add nw-br type bridge");
    ip("link set nw-br up");
    let lines = churn_lines(kind, 100, 4000);
    let additions: Vec<&str> = lines.lines().take(4000).collect();
    ip("link add nw-vx type vxlan id 1 dstport 4789 nolearning");
    batch(&(additions.join("\n") + "\n"));
    let rtnl = Rtnl::new().unwrap();
    let churning = Churn::start(churn_lines(kind, 200, 2000));
    let (mut consistent, mut failed) = (0, 0);
    let start = Instant::now();
    // At least five, also on a busy machine.
    while start.elapsed() < Duration::from_secs(3) || consistent < 5 {
        assert!(start.elapsed() < Duration::from_secs(60), "{failed} failed");
        match rtnl.read().await {
            Ok(state) => {
                assert_eq!(constant(&state), 4000, "an inconsistent dump of {kind}");
                consistent += 1;
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                failed += 1;
            }
        }
    }
    let rounds = churning.stop();
    let repeated = rtnl.interruptions();
    println!(
        "{kind}: {consistent} consistent, {repeated} repeated, {failed} failed, {rounds} rounds of churn"
    );
    assert!(rounds >= 2);
    if kind == "address" {
        assert!(
            repeated > 0,
            "the kernel reported no interruption, so the test has no effect"
        );
    }
}

/// Number of objects of the constant set in a state. Addresses are counted once, without their routes.
fn constant(state: &NetworkState) -> usize {
    let in_set = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [10, 100],
        IpAddr::V6(ip) => ip.segments()[..2] == [0xfd00, 0x100],
    };
    let routes = state.routes.keys().filter(|key| in_set(key.dst.addr()));
    let addresses = state.addresses.keys().filter(|key| in_set(key.net.addr()));
    let neighbours = state.neighbours.keys().filter(|key| in_set(key.ip));
    let entries = state.fdb.keys().filter(|key| key.mac.0[3] == 100);
    routes.count() + addresses.count() + neighbours.count() + entries.count()
}

/// Repeats one `ip -batch` in the namespace of this thread, on another thread.
struct Churn {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Churn {
    fn start(lines: String) -> Self {
        let here = netns::open(Path::new("/proc/thread-self/ns/net")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            let mut rounds = 0;
            while !stopped.load(Ordering::Relaxed) {
                batch(&lines);
                rounds += 1;
                // For tables without detection of interruptions, only a pause allows two equal dumps.
                std::thread::sleep(Duration::from_millis(30));
            }
            rounds
        };
        let thread =
            std::thread::spawn(move || netns::run_in(here.as_fd(), "churn", work).unwrap());
        Self { stop, thread }
    }

    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
