//! Pings between all pods every 10 ms, while something is broken on purpose.
//!
//! The pings are started through the engine and not through the API server, which may be what is broken. Every meter
//! contains one loss that is made on purpose and must be found: a meter that finds nothing proves nothing.

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::machine;
use super::probes::{Probe, Probes};
use crate::ping::Answer;

const PROGRAM: &str = "/usr/local/bin/netweft-probe";
const INTERVAL: Duration = Duration::from_millis(10);
/// Requests that the control pretends to send.
const WITHHELD: u16 = 3;

/// Pings that go on.
pub struct Meter {
    pings: Vec<Ping>,
    control: Ping,
}

struct Ping {
    from: String,
    child: Child,
}

impl Meter {
    /// Every pod pings every other for `duration`.
    ///
    /// # Errors
    /// A ping cannot be started.
    pub fn start(probes: &Probes, duration: Duration) -> anyhow::Result<Self> {
        bring_program(probes)?;
        let count = duration.as_millis() / INTERVAL.as_millis();
        let others = |from: &Probe| -> Vec<IpAddr> {
            let others = probes
                .pods
                .iter()
                .filter(|probe| probe.address != from.address);
            others.flat_map(|probe| probe.addresses.clone()).collect()
        };
        let pings = probes
            .pods
            .iter()
            .map(|from| ping(from, &others(from), count, 0))
            .collect::<anyhow::Result<_>>()?;
        let first = probes.pods.first().context("there are pods")?;
        let last = probes.pods.last().context("there are pods")?;
        let control = ping(first, &[last.address], count, WITHHELD)?;
        Ok(Self { pings, control })
    }

    /// Wait until all pings have ended.
    ///
    /// # Errors
    /// A request was not answered, or the control's loss was not found.
    pub fn finish(self) -> anyhow::Result<()> {
        let Self { pings, control } = self;
        let mut lost = Vec::new();
        let mut sent = 0;
        for ping in pings {
            let from = ping.from.clone();
            for answer in answers(ping)? {
                sent += u64::from(answer.sent);
                if answer.received < answer.sent {
                    let missing = answer.sent - answer.received;
                    let why = answer
                        .error
                        .map_or(String::new(), |error| format!(" ({error})"));
                    lost.push(format!(
                        "{from} to {}: {missing} of {} lost{why}",
                        answer.target, answer.sent
                    ));
                }
            }
        }
        for answer in answers(control)? {
            ensure!(
                answer.sent - answer.received >= WITHHELD,
                "the meter did not find the loss that was made on purpose: {answer:?}"
            );
        }
        ensure!(lost.is_empty(), "{}", lost.join("\n  "));
        println!("  {sent} pings, none lost");
        Ok(())
    }
}

/// The probe as a program of the node.
fn bring_program(probes: &Probes) -> anyhow::Result<()> {
    let here = std::env::current_exe()?;
    let program = here.with_file_name("netweft-probe");
    probes
        .nodes
        .iter()
        .try_for_each(|node| machine::copy(&program, &node.node, PROGRAM))
}

fn ping(from: &Probe, targets: &[IpAddr], count: u128, withhold: u16) -> anyhow::Result<Ping> {
    let netns = netns(from)?;
    let mut command: Command = machine::command(&from.node, "nsenter");
    command
        .arg(format!("--net={netns}"))
        .args([PROGRAM, "ping"]);
    command.args(["--count", &count.to_string()]);
    command.args(["--interval", &INTERVAL.as_millis().to_string()]);
    command.args(["--withhold", &withhold.to_string()]);
    command.args(targets.iter().map(ToString::to_string));
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start docker")?;
    Ok(Ping {
        from: format!("{} on {}", from.pod, from.node),
        child,
    })
}

/// Path of a pod's network namespace on its node, from the plugin's own record.
fn netns(pod: &Probe) -> anyhow::Result<String> {
    let record = machine::on(
        &pod.node,
        &["cat", &format!("/run/netweft/attachments/{}", pod.address)],
    )?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    let path = record.get("netns").and_then(serde_json::Value::as_str);
    Ok(path.context("a record has a namespace")?.to_owned())
}

fn answers(ping: Ping) -> anyhow::Result<Vec<Answer>> {
    let output = ping.child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "the pings of {} ended early: {}",
        ping.from,
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout)?;
    lines
        .lines()
        .map(|line| serde_json::from_str(line).context("read the probe's answer"))
        .collect()
}
