//! Pings between all pods every 10 ms, while something is broken on purpose.
//!
//! The pings are started through the engine and not through the API server, which may be what is broken.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::kind::host;
use crate::kind::probes::{Probe, Probes};
use crate::traffic::loss_meter::{INTERVAL, Pace, Pings};

const PROGRAM: &str = "/usr/local/bin/netweft-probe";

/// Pings that go on.
pub struct Meter(Pings);

impl Meter {
    /// Every pod pings every other for `duration`.
    ///
    /// # Errors
    /// A ping cannot be started.
    pub fn start(probes: &Probes, duration: Duration) -> anyhow::Result<Self> {
        bring_program(probes)?;
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
        let first = pods.first().context("there are pods")?;
        let last = pods.last().context("there are pods")?;
        pings.control(probe(first)?, last.address)?;
        Ok(Self(pings))
    }

    /// Wait until all pings have ended.
    ///
    /// # Errors
    /// A request was not answered, or the control's loss was not found.
    pub fn finish(self) -> anyhow::Result<()> {
        self.0.finish()?.check_none("  meanwhile")
    }
}

/// The probe as a program of the node.
fn bring_program(probes: &Probes) -> anyhow::Result<()> {
    let here = std::env::current_exe()?;
    let program = here.with_file_name("netweft-probe");
    probes
        .nodes
        .iter()
        .try_for_each(|node| host::copy(&program, &node.node, PROGRAM))
}

/// The probe in a pod's network namespace, started on its node.
fn probe(pod: &Probe) -> anyhow::Result<Command> {
    let netns = netns(pod)?;
    let mut command = host::command(&pod.node, "nsenter");
    command.arg(format!("--net={netns}")).arg(PROGRAM);
    Ok(command)
}

/// Path of a pod's network namespace on its node, from the plugin's own record.
fn netns(pod: &Probe) -> anyhow::Result<String> {
    let record = host::on(
        &pod.node,
        &["cat", &format!("/run/netweft/attachments/{}", pod.address)],
    )?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    let path = record.get("netns").and_then(serde_json::Value::as_str);
    Ok(path.context("a record has a namespace")?.to_owned())
}
