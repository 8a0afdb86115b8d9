//! Measurement of packet loss during a change or a failure: pings between all pods, every 10 ms.
//!
//! Docker starts the pings. `kubectl exec` would fail while the API server is down.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::kind::host;
use crate::kind::probes::{Probe, Probes};
use crate::traffic::loss_meter::{INTERVAL, Pace, Pings};

/// Path of the probe on the nodes.
const PROGRAM: &str = "/usr/local/bin/netweft-probe";

/// Running pings.
pub struct Meter(Pings);

impl Meter {
    /// Start pings from every pod to every other pod, for `duration`.
    ///
    /// # Errors
    /// The probe cannot be copied to a node, or cannot be started.
    pub fn start(probes: &Probes, duration: Duration) -> anyhow::Result<Self> {
        copy_program(probes)?;
        let count = u16::try_from(duration.as_millis() / INTERVAL.as_millis())?;
        let mut pings = Pings::new(Pace {
            interval: INTERVAL,
            count: Some(count),
        });
        let pods = &probes.pods;
        for from in pods {
            let others = pods.iter().filter(|pod| pod.address != from.address);
            let others: Vec<IpAddr> = others.flat_map(|pod| pod.addresses.clone()).collect();
            let name = format!("{} on {}", from.pod, from.node);
            pings.add(name, probe(from)?, &others)?;
        }
        let first = pods.first().context("there are no test pods")?;
        let last = pods.last().context("there are no test pods")?;
        pings.control(probe(first)?, last.address)?;
        Ok(Self(pings))
    }

    /// Wait until all pings have ended, and check that no packet was lost.
    ///
    /// # Errors
    /// A ping was not answered, or the control did not detect its deliberate loss.
    pub fn finish(self) -> anyhow::Result<()> {
        self.0.finish()?.check_none("  packet loss")
    }
}

/// Copy the probe to all nodes.
fn copy_program(probes: &Probes) -> anyhow::Result<()> {
    let own_program = std::env::current_exe()?;
    let program = own_program.with_file_name("netweft-probe");
    probes
        .nodes
        .iter()
        .try_for_each(|node| host::copy(&program, &node.node, PROGRAM))
}

/// The command that runs the probe in the network namespace of a pod, on the node of the pod.
fn probe(pod: &Probe) -> anyhow::Result<Command> {
    let netns = netns(pod)?;
    let mut command = host::command(&pod.node, "nsenter");
    command.arg(format!("--net={netns}")).arg(PROGRAM);
    Ok(command)
}

/// Path of the network namespace of a pod on its node, from the attachment record of the CNI plugin.
fn netns(pod: &Probe) -> anyhow::Result<String> {
    let record = host::on(
        &pod.node,
        &["cat", &format!("/run/netweft/attachments/{}", pod.address)],
    )?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    let path = record.get("netns").and_then(serde_json::Value::as_str);
    Ok(path
        .context("the record has no network namespace")?
        .to_owned())
}
