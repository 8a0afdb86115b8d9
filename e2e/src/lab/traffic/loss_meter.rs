//! Continuous pings between the pods of the lab.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::lab::node::pod::Pod;
use crate::traffic::loss_meter::{Pace, Pings};

/// Each pod pings all pods of other nodes in every family.
///
/// # Errors
/// A probe cannot be started, or there are fewer than two pods.
pub fn start(binaries: &Path, pods: &[Pod], interval: Duration) -> anyhow::Result<Pings> {
    let probe = |pod: &Pod| pod.namespace.command(binaries.join("netweft-probe"));
    let mut pings = Pings::new(Pace {
        interval,
        count: None,
    });
    for source in pods {
        let others = pods.iter().filter(|pod| pod.node != source.node);
        let targets: Vec<IpAddr> = others.flat_map(|pod| pod.addresses.clone()).collect();
        pings.add(source.name.clone(), probe(source), &targets)?;
    }
    let [first, .., last] = pods else {
        anyhow::bail!("pings need two pods");
    };
    let target = last
        .addresses
        .first()
        .context("the pod has no address of the family")?;
    pings.control(probe(first), *target)?;
    Ok(pings)
}
