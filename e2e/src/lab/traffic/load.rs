//! Pings and TCP connections between all pods and nodes during an action, and the loss that the action may cause.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::lab::Lab;
use crate::lab::traffic::tcp::{FailedConnection, TcpLoad, TcpSummary};
use crate::traffic::loss_meter;
use crate::traffic::loss_meter::Losses;

/// The intervals of the load.
pub struct LoadIntervals {
    /// Time between two pings of a pair.
    pub pings: Duration,
    /// Time between two chunks of a connection, and between two short connections.
    pub tcp: Duration,
}

/// A load that leaves CPU time to the agents.
pub const LOW_LOAD: LoadIntervals = LoadIntervals {
    pings: loss_meter::INTERVAL,
    tcp: Duration::from_millis(50),
};

/// The loss that an action may cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedLoss<'a> {
    /// No loss.
    None,
    /// This node and its pods may lose packets. Of the connections, only those between its pods and external hosts may fail: when a link
    /// is deleted, the kernel removes the connections that it masqueraded on that link (`masq_device_event`).
    Packets(&'a str),
    /// Connections of the node itself may fail as well.
    PacketsAndConnections(&'a str),
}

/// Load before and after the action, so that all pings and connections run while the action runs.
const LOAD_MARGIN: Duration = Duration::from_millis(300);

/// The result of an action, and the loss during it.
pub struct Measured<T> {
    /// The result of the action.
    pub result: T,
    /// Lost pings.
    pub losses: Losses,
    /// TCP connections.
    pub connections: TcpSummary,
}

impl Lab {
    /// Runs `action` under load. After that, every node has its desired state, all pairs are reachable, and only the loss of
    /// `expected_loss` has occurred.
    ///
    /// # Errors
    /// The action fails, the load cannot be started, or one of these conditions is not met.
    pub fn expect_loss(
        &mut self,
        what: &str,
        expected_loss: ExpectedLoss<'_>,
        action: impl FnOnce(&mut Self) -> anyhow::Result<Duration>,
    ) -> anyhow::Result<()> {
        let mut own_addresses = match expected_loss {
            ExpectedLoss::None => BTreeSet::new(),
            ExpectedLoss::Packets(node) | ExpectedLoss::PacketsAndConnections(node) => {
                self.addresses_on(node)?
            }
        };
        let intervals = LoadIntervals {
            pings: self.options.ping_interval,
            tcp: self.options.ping_interval * 5,
        };
        let measured = self.measure_under_load(&intervals, |lab| {
            let took = action(lab)?;
            lab.cluster.wait_for_desired_state()?;
            anyhow::Ok(took)
        })?;
        let Measured {
            result,
            mut losses,
            connections,
        } = measured;
        let took = result.with_context(|| what.to_owned())?;
        let (ExpectedLoss::Packets(node) | ExpectedLoss::PacketsAndConnections(node)) =
            expected_loss
        else {
            ensure!(connections.failed.is_empty(), "{what}: {connections}");
            losses.check_none(&format!("{what} ({took:.1?})"))?;
            return self.check_reachability(what);
        };
        own_addresses.extend(self.addresses_on(node)?);
        println!("{what} ({took:.1?}): with the node: {losses}");
        let is_pod_of_node = |name: &str| {
            let mut pods = self.cluster.pods.iter();
            pods.any(|pod| pod.name == name && pod.node == node)
        };
        losses.pairs.retain(|(source, answer)| {
            !is_pod_of_node(source) && !own_addresses.contains(&answer.target)
        });
        losses.check_none(&format!("{what}: all other pairs"))?;
        let may_fail = |failed: &FailedConnection| {
            let server = failed.server.ip();
            let mut pools = self.options.families.pools();
            let external = !pools.any(|pool| pool.contains(&server));
            let of_node = failed.source == node || own_addresses.contains(&server);
            (external && is_pod_of_node(&failed.source))
                || (expected_loss == ExpectedLoss::PacketsAndConnections(node) && of_node)
        };
        let all_expected = connections.failed.iter().all(may_fail);
        ensure!(all_expected, "{what}: {connections}");
        self.check_reachability(what)
    }

    /// All pairs of pods and nodes are reachable, in every family. `what` has happened before, for the message.
    ///
    /// # Errors
    /// A pair is not reachable, or a probe cannot be run.
    pub fn check_reachability(&self, what: &str) -> anyhow::Result<()> {
        let mut pools = self.options.families.pools();
        let checked = pools.try_for_each(|pool| self.matrix(pool)?.check());
        checked.with_context(|| what.to_owned())
    }

    /// The addresses of a node and its pods.
    fn addresses_on(&self, node: &str) -> anyhow::Result<BTreeSet<IpAddr>> {
        let pods = self.cluster.pods.iter().filter(|pod| pod.node == node);
        let mut addresses: BTreeSet<IpAddr> = pods.flat_map(|pod| pod.addresses.clone()).collect();
        let mut nodes = self.cluster.nodes.iter();
        let found = nodes.find(|found| found.name == node);
        addresses.extend(&found.context("the node does not exist")?.addresses);
        Ok(addresses)
    }

    /// Runs `action` under load. Servers must run in all pods and on all nodes.
    ///
    /// # Errors
    /// The load cannot be started or measured. An error of the action is in `result` of the returned value.
    pub fn measure_under_load<T>(
        &mut self,
        intervals: &LoadIntervals,
        action: impl FnOnce(&mut Self) -> T,
    ) -> anyhow::Result<Measured<T>> {
        let meter = self.cluster.meter(intervals.pings)?;
        let nodes_have_return_path = self.options.masquerading;
        let tcp = TcpLoad::start(&self.cluster, intervals.tcp, nodes_have_return_path)?;
        std::thread::sleep(LOAD_MARGIN);
        let result = action(self);
        std::thread::sleep(LOAD_MARGIN);
        let losses = meter.finish()?;
        let connections = tcp.finish()?;
        Ok(Measured {
            result,
            losses,
            connections,
        })
    }
}
