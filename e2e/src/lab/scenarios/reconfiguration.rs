//! Changes of a node's uplink, MTU, addresses and clock. The agent adapts without a restart and without user action.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::lab::cluster::nodes::TCP_PORT;
use crate::lab::node::Node;
use crate::lab::node::pod::Pod;
use crate::lab::topology::segment;
use crate::lab::topology::segment::MTU;
use crate::lab::topology::underlay::{Subnet, addresses};
use crate::lab::traffic::load::ExpectedLoss;
use crate::lab::{Lab, Options, UPLINKS, run_scenario};

/// Number of the node that is reconfigured.
const NODE: u8 = 3;
/// The uplink of the node after its replacement.
const NEW_UPLINK: &str = "enx0";
/// The host number of the node after the change of its address.
const NEW_NUMBER: u8 = 33;
/// A reduced MTU of the uplink, in bytes. The pods' MTU stays above 1280, the minimum of IPv6.
const REDUCED_MTU: u32 = 1350;
/// Limit until a node is reachable after a change, which takes a second.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a payload that needs many packets of full size.
const LARGE_PAYLOAD: usize = 60_000;
/// The size of a clock change.
const CLOCK_CHANGE: TimeSpec = TimeSpec::new(48 * 3600, 0);

/// Builds a lab and checks the loss of each reconfiguration. With `may_set_clock` the clock of the whole machine changes, too.
///
/// # Errors
/// The lab cannot be built, or a check fails. The agents' logs are printed then.
pub fn run(options: &Options, may_set_clock: bool, keep: bool) -> anyhow::Result<()> {
    run_scenario(options.clone(), &title(options), keep, |lab| {
        lab.run_reconfigurations(may_set_clock)
    })
}

/// The title of the lab.
#[must_use]
pub fn title(options: &Options) -> String {
    format!("reconfigurations of a node, {options}")
}

impl Lab {
    fn run_reconfigurations(&mut self, may_set_clock: bool) -> anyhow::Result<()> {
        self.cluster.start_servers(true)?;
        let name = self.cluster.node(NODE.into())?.name.clone();
        self.expect_loss(
            "the MTU of an uplink was reduced",
            ExpectedLoss::None,
            |lab| lab.set_uplink_mtu(REDUCED_MTU),
        )?;
        self.expect_loss(
            "the MTU of an uplink was raised",
            ExpectedLoss::None,
            |lab| lab.set_uplink_mtu(MTU),
        )?;
        let expected = ExpectedLoss::Packets(&name);
        self.expect_loss("an uplink was replaced", expected, |lab| {
            lab.replace_uplink(NEW_UPLINK, NODE)
        })?;
        let expected = ExpectedLoss::PacketsAndConnections(&name);
        self.expect_loss(
            "the address of a node changed",
            expected,
            Self::change_address,
        )?;
        if may_set_clock {
            self.expect_loss("the clock changed", ExpectedLoss::None, Self::change_clock)?;
        }
        Ok(())
    }

    /// The MTU of pods follows the MTU of their node's uplink.
    fn set_uplink_mtu(&mut self, mtu: u32) -> anyhow::Result<Duration> {
        let node = self.cluster.node(NODE.into())?;
        let pod_mtu = node.status()?.mtu.context("the status has no MTU")?;
        let previous = uplink_mtu(node)?;
        let started = Instant::now();
        node.namespace
            .ip(&format!("link set {} mtu {mtu}", uplink_of(NODE)))?;
        let expected = i64::from(pod_mtu) + i64::from(mtu) - i64::from(previous);
        until("a new MTU of pods", RECOVERY_TIMEOUT, || {
            let current = node.status()?.mtu.map(i64::from);
            ensure!(
                current == Some(expected),
                "the MTU is {current:?} and should be {expected}"
            );
            Ok(())
        })?;
        let took = started.elapsed();
        // The other nodes get the new MTU.
        self.cluster.reconcile()?;
        self.cluster.wait_for_desired_state()?;
        self.check_large_payloads()?;
        Ok(took)
    }

    /// Existing pods keep their link MTU and learn the new path MTU.
    fn check_large_payloads(&self) -> anyhow::Result<()> {
        let [first, .., last] = &self.cluster.pods[..] else {
            anyhow::bail!("the lab has fewer than two pods");
        };
        for (source, destination) in [(first, last), (last, first)] {
            for ip in &destination.addresses {
                let server = SocketAddr::new(*ip, TCP_PORT);
                source
                    .namespace
                    .ask(&self.cluster.binaries, "tcp", server, LARGE_PAYLOAD)?;
            }
        }
        Ok(())
    }

    /// The uplink of the node is deleted, and another is attached.
    fn replace_uplink(&mut self, uplink: &str, number: u8) -> anyhow::Result<Duration> {
        let (node, _) = self.cluster.node_mut(NODE.into())?;
        self.underlay.disconnect(node, Subnet::Near)?;
        self.underlay.connect(node, uplink, Subnet::Near, number)?;
        self.wait_until_reachable()
    }

    /// The address of the node changes in the kernel first, then in the Node's status.
    fn change_address(&mut self) -> anyhow::Result<Duration> {
        let families = self.options.families;
        let nets = |number| addresses(families, Subnet::Near, number);
        let (node, _) = self.cluster.node_mut(NODE.into())?;
        for (verb, nets) in [("delete", nets(NODE)), ("add", nets(NEW_NUMBER))] {
            for net in nets {
                node.namespace
                    .ip(&segment::address_command(verb, net, NEW_UPLINK))?;
            }
        }
        node.addresses = nets(NEW_NUMBER).iter().map(IpNet::addr).collect();
        // The kernel has removed the default routes together with the address.
        self.underlay
            .add_default_routes(node, NEW_UPLINK, Subnet::Near)?;
        self.cluster.register_nodes();
        self.cluster.reconcile()?;
        self.wait_until_reachable()
    }

    fn wait_until_reachable(&mut self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let what = "reachability of all pairs";
        until(what, RECOVERY_TIMEOUT, || self.check_reachability(what))?;
        Ok(started.elapsed())
    }

    /// The clock is set forward, back, further back, and to the correct time. After each change an agent restarts, and a pod is added and
    /// deleted.
    fn change_clock(&mut self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        for [change, back] in [[CLOCK_CHANGE, -CLOCK_CHANGE], [-CLOCK_CHANGE, CLOCK_CHANGE]] {
            for offset in [change, back] {
                let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
                clock_settime(ClockId::CLOCK_REALTIME, now + offset)?;
                self.cluster.node_mut(1)?.0.kill_agent()?;
                self.cluster.start_agent(1)?;
                self.cluster.node(1)?.wait_until_ready()?;
                let node = self
                    .cluster
                    .nodes
                    .first()
                    .context("the node does not exist")?;
                let binaries = &self.options.binaries;
                let pod = Pod::add(&mut self.cluster.run, node, "pod-clock", binaries)?;
                pod.delete(node, binaries)?;
                self.cluster.wait_for_desired_state()?;
            }
        }
        Ok(started.elapsed())
    }
}

fn uplink_of(number: u8) -> &'static str {
    let at = usize::from(number).checked_sub(1);
    at.and_then(|at| UPLINKS.get(at))
        .copied()
        .unwrap_or_default()
}

fn uplink_mtu(node: &Node) -> anyhow::Result<u32> {
    let command = format!("cat /sys/class/net/{}/mtu", uplink_of(NODE));
    let mtu = output(node.namespace.command("sh").args(["-c", &command]))?;
    Ok(mtu.trim().parse()?)
}
