//! The udp relay is replaced while it forwards packets of pods.

use anyhow::ensure;

use crate::kind::checks::Cluster;
use crate::kind::checks::rollout::{ROLLOUT, differ, pods, replace};
use crate::kind::meter::Meter;

pub(crate) fn relay_rollout_loses_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = pods("udp-relay")?;
    let meter = Meter::start(&cluster.probes, ROLLOUT)?;
    let replaced = replace("netweft-udp-relay");
    meter.finish()?;
    replaced?;
    ensure!(
        differ(&before, &pods("udp-relay")?),
        "the relay was not replaced"
    );
    Ok(())
}
