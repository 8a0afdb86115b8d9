//! Pings between the lab's pods until they are asked about.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::lab::node::pod::Pod;
use crate::traffic::loss_meter::{Pace, Pings};

/// Each of these pods pings every other in every family, but not those on its own node.
///
/// # Errors
/// A ping cannot be started.
pub fn start(binaries: &Path, pods: &[Pod], interval: Duration) -> anyhow::Result<Pings> {
    let probe = |pod: &Pod| pod.space.command(binaries.join("netweft-probe"));
    let mut pings = Pings::new(Pace {
        interval,
        count: None,
    });
    for from in pods {
        let others = pods.iter().filter(|pod| pod.node != from.node);
        let far: Vec<IpAddr> = others.flat_map(|pod| pod.addresses.clone()).collect();
        pings.add(from.name.clone(), probe(from), &far)?;
    }
    let [first, .., last] = pods else {
        anyhow::bail!("a meter takes two pods");
    };
    let target = last.addresses.first().context("a pod's address")?;
    pings.control(probe(first), *target)?;
    Ok(pings)
}
