//! Rollout of the udp relay under load.

use anyhow::ensure;

use crate::kind::checks::Cluster;
use crate::kind::checks::rollout::{ROLLOUT_TIMEOUT, all_replaced, pods, restart_daemonset};
use crate::kind::meter::Meter;

pub(crate) fn relay_rollout_loses_no_packets(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = pods("udp-relay")?;
    let meter = Meter::start(&cluster.probes, ROLLOUT_TIMEOUT)?;
    let restarted = restart_daemonset("netweft-udp-relay");
    meter.finish()?;
    restarted?;
    ensure!(
        all_replaced(&before, &pods("udp-relay")?),
        "the rollout has not replaced all relay pods"
    );
    Ok(())
}
