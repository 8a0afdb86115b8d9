//! Bandwidth limits by the annotations of a pod.

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
/// 20 Mbit/s: the value of the annotation, and bytes per second.
const RATE: (&str, u64) = ("20M", 2_500_000);
/// Time limit until the rate is limited. containerd configures a burst of 2³² - 1 bits, which passes without a limit within seconds.
const TIMEOUT: Duration = Duration::from_secs(90);

/// After the burst, ingress and egress of the pod have the rate of its annotations. The deleted pod leaves no state on the node.
pub(crate) fn bandwidth_annotation_limits_pod_rate(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = Residue::with_agents()?;
    let other = cluster.probes.last()?.clone();
    let manifest = LIMITED_POD
        .replace("NODE", &other.node)
        .replace("IMAGE", &cluster.image)
        .replace("RATE", RATE.0);
    apply(&manifest)?;
    wait_for_pod(LIMITED)?;
    let address = pod_address(LIMITED)?;
    check_rate(&other.pod, LIMITED, &address).context("ingress of the pod")?;
    check_rate(LIMITED, &other.pod, &other.address.to_string()).context("egress of the pod")?;
    stop_pod(LIMITED)?;
    until("the removal of all state of the pod", TIMEOUT, || {
        Residue::with_agents()?.same_as(&before)
    })
}

/// Send data from one pod to another at maximum speed. The burst must exceed the rate, which shows that the machine is fast enough.
/// After the burst, the data must have the rate.
fn check_rate(from: &str, to: &str, address: &str) -> anyhow::Result<()> {
    // `sleep` keeps the standard input of the listener open, because nc ends at the end of its input.
    let _receiver = BackgroundScript::start(to, "sleep 180 | nc -l -p 7000 >/dev/null")?;
    let send =
        format!("for i in $(seq 100); do nc {address} 7000 </dev/zero && break; sleep 0.1; done");
    let _sender = BackgroundScript::start(from, &send)?;
    let mut fastest = 0;
    until("the limited rate", TIMEOUT, || {
        let rate = received_bytes_per_second(to)?;
        fastest = fastest.max(rate);
        ensure!(
            fastest > 4 * RATE.1,
            "the maximum is {fastest} bytes/s, a burst should reach more than {} bytes/s",
            4 * RATE.1
        );
        ensure!(
            (RATE.1 / 2..=RATE.1 * 5 / 4).contains(&rate),
            "the rate is {rate} bytes/s instead of {} bytes/s",
            RATE.1
        );
        Ok(())
    })
}

fn received_bytes_per_second(pod: &str) -> anyhow::Result<u64> {
    let count = "cat /sys/class/net/eth0/statistics/rx_bytes";
    let script = format!("a=$({count}); sleep 1; b=$({count}); echo $((b - a))");
    let text = kubectl(&["-n", "netweft-e2e", "exec", pod, "--", "sh", "-c", &script])?;
    text.trim().parse().context("parse the number of bytes")
}

/// A script with `nc` that runs in a pod until this value is dropped, for at most three minutes.
struct BackgroundScript<'a> {
    pod: &'a str,
    child: Child,
}

impl<'a> BackgroundScript<'a> {
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

impl Drop for BackgroundScript<'_> {
    fn drop(&mut self) {
        // The end of kubectl does not end the script in the pod. The script may have ended already.
        let _ = kubectl(&["-n", "netweft-e2e", "exec", self.pod, "--", "killall", "nc"]);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
