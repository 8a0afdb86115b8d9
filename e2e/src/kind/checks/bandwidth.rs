//! Rates that pods ask for by annotation.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::poll::until;
use crate::kind::checks::Cluster;
use crate::kind::checks::addresses::{pod_address, stop_pod};
use crate::kind::kubectl::{apply, kubectl};
use crate::kind::probes::wait_for_pod;
use crate::kind::residue::Residue;

const LIMITED: &str = "limited";
const LIMITED_POD: &str = include_str!("../../../manifests/limited.yaml");
/// 20 Mbit/s, as the annotation has it and in bytes per second.
const RATE: (&str, u64) = ("20M", 2_500_000);
/// Containerd allows a burst of 2³² - 1 bits before the rate holds; so much passes within seconds, unlimited.
const ENOUGH: Duration = Duration::from_secs(90);

/// What comes in and what goes out is soon no faster than the pod's annotations say, after a burst that is, and nothing of
/// it is left when the pod has gone.
pub(crate) fn bandwidth_annotation_limits_pod_rate(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = Residue::look()?;
    let other = cluster.probes.pods.last().context("a pod")?.clone();
    let manifest = LIMITED_POD
        .replace("NODE", &other.node)
        .replace("IMAGE", &cluster.image)
        .replace("RATE", RATE.0);
    apply(&manifest)?;
    wait_for_pod(LIMITED)?;
    let address = pod_address(LIMITED)?;
    slows_down(&other.pod, LIMITED, &address).context("to the pod")?;
    slows_down(LIMITED, &other.pod, &other.address.to_string()).context("from the pod")?;
    stop_pod(LIMITED)?;
    until("all traces of the pod to be gone", ENOUGH, || {
        Residue::look()?.same_as(&before)
    })
}

/// Pour from one pod into another: fast at first, which proves that the machine could; then as slow as the rate.
fn slows_down(from: &str, to: &str, address: &str) -> anyhow::Result<()> {
    // What listens ends the connection when its own input ends.
    let _sink = Running::start(to, "sleep 180 | nc -l -p 7000 >/dev/null")?;
    let pour =
        format!("for i in $(seq 100); do nc {address} 7000 </dev/zero && break; sleep 0.1; done");
    let _source = Running::start(from, &pour)?;
    let mut fastest = 0;
    until("the rate to hold", ENOUGH, || {
        let now = received_in_a_second(to)?;
        fastest = fastest.max(now);
        ensure!(
            fastest > 4 * RATE.1,
            "no more than {fastest} bytes came in a second: is there no burst?"
        );
        ensure!(
            (RATE.1 / 2..=RATE.1 * 5 / 4).contains(&now),
            "{now} bytes came in a second, and the rate is {}",
            RATE.1
        );
        Ok(())
    })
}

fn received_in_a_second(pod: &str) -> anyhow::Result<u64> {
    let count = "cat /sys/class/net/eth0/statistics/rx_bytes";
    let script = format!("a=$({count}); sleep 1; b=$({count}); echo $((b - a))");
    let text = kubectl(&["-n", "netweft-e2e", "exec", pod, "--", "sh", "-c", &script])?;
    text.trim().parse().context("bytes")
}

/// A script with `nc` that runs in a pod for as long as this value lives, and never for longer than three minutes.
struct Running<'a> {
    pod: &'a str,
    child: Child,
}

impl<'a> Running<'a> {
    fn start(pod: &'a str, script: &str) -> anyhow::Result<Self> {
        let words = [
            "-n",
            "netweft-e2e",
            "exec",
            pod,
            "--",
            "timeout",
            "180",
            "sh",
            "-c",
            script,
        ];
        let mut command = Command::new("kubectl");
        let quiet = command
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = quiet.spawn().context("start kubectl")?;
        Ok(Self { pod, child })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // It may have ended by itself. What runs in the pod does not end with who started it.
        let _ = kubectl(&["-n", "netweft-e2e", "exec", self.pod, "--", "killall", "nc"]);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
