//! Changes around a node: its uplink, its addresses, its clock. No program has to be reconfigured or restarted.

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
use crate::lab::traffic::load::Sufferer;
use crate::lab::{Lab, Options, UPLINKS, run_scenario};

/// The node that is reconfigured.
const NODE: u8 = 3;
/// Its uplink, once it has got another.
const OTHER_UPLINK: &str = "enx0";
/// Its host number, once it has got another.
const OTHER_NUMBER: u8 = 33;
/// An uplink's MTU in bytes, that is smaller than it was, and leaves IPv6 what it needs.
const SMALLER: u32 = 1350;
/// How long a node may be out of reach that has got another uplink or another address; it takes a second.
const BACK: Duration = Duration::from_secs(30);
/// Bytes that take many packets as large as they may be.
const LARGE: usize = 60_000;
/// How far the clock jumps.
const JUMP: TimeSpec = TimeSpec::new(48 * 3600, 0);

/// Build a lab, and see what each reconfiguration costs. With `may_set_clock` the lab sets the clock of the machine.
///
/// # Errors
/// A check that fails; the agents' logs have been printed then.
pub fn run(options: &Options, may_set_clock: bool, keep: bool) -> anyhow::Result<()> {
    let happens = |lab: &mut Lab| lab.reconfigure(may_set_clock);
    run_scenario(options.clone(), &about(options), keep, happens)
}

/// What the lab is about.
#[must_use]
pub fn about(options: &Options) -> String {
    format!("changes around a node, {options}")
}

impl Lab {
    fn reconfigure(&mut self, may_set_clock: bool) -> anyhow::Result<()> {
        self.site.start_servers(true)?;
        let name = self.site.node(NODE.into())?.name.clone();
        self.costs("an uplink's MTU became smaller", Sufferer::Nobody, |lab| {
            lab.resize_uplink(SMALLER)
        })?;
        self.costs("an uplink's MTU became larger", Sufferer::Nobody, |lab| {
            lab.resize_uplink(MTU)
        })?;
        let node = Sufferer::Links(&name);
        self.costs("an uplink was replaced", node, |lab| {
            lab.plug(OTHER_UPLINK, NODE)
        })?;
        let node = Sufferer::Connections(&name);
        self.costs("a node's address changed", node, Self::change_address)?;
        if may_set_clock {
            self.costs("the clock jumped", Sufferer::Nobody, Self::jump)?;
        }
        Ok(())
    }

    /// The pods' MTU follows that of their node's uplink.
    fn resize_uplink(&mut self, mtu: u32) -> anyhow::Result<Duration> {
        let node = self.site.node(NODE.into())?;
        let before = node.status()?.mtu.context("the agent reports no MTU")?;
        let was = uplink_mtu(node)?;
        let began = Instant::now();
        node.space
            .ip(&format!("link set {} mtu {mtu}", uplink_of(NODE)))?;
        let expected = i64::from(before) + i64::from(mtu) - i64::from(was);
        until("the pods' MTU to follow", BACK, || {
            let now = node.status()?.mtu.map(i64::from);
            ensure!(
                now == Some(expected),
                "it is {now:?} and should be {expected}"
            );
            Ok(())
        })?;
        let took = began.elapsed();
        // The other nodes get the new value.
        self.site.settle()?;
        self.site.is_as_wanted()?;
        self.large_packets_pass()?;
        Ok(took)
    }

    /// Pods that were there before have the old MTU, and learn of the new one.
    fn large_packets_pass(&self) -> anyhow::Result<()> {
        let [from, .., to] = &self.site.pods[..] else {
            anyhow::bail!("two pods");
        };
        for (from, to) in [(from, to), (to, from)] {
            for ip in &to.addresses {
                let server = SocketAddr::new(*ip, TCP_PORT);
                from.space.ask(&self.site.binaries, "tcp", server, LARGE)?;
            }
        }
        Ok(())
    }

    /// The node's uplink is pulled, and another is plugged in.
    fn plug(&mut self, uplink: &str, number: u8) -> anyhow::Result<Duration> {
        let (node, _) = self.site.node_mut(NODE.into())?;
        self.underlay.disconnect(node, Subnet::Near)?;
        self.underlay.connect(node, uplink, Subnet::Near, number)?;
        self.until_all_are_reached()
    }

    /// The node gets another address, and then the Node object does.
    fn change_address(&mut self) -> anyhow::Result<Duration> {
        let families = self.options.families;
        let nets = |number| addresses(families, Subnet::Near, number);
        let (node, _) = self.site.node_mut(NODE.into())?;
        for (verb, nets) in [("delete", nets(NODE)), ("add", nets(OTHER_NUMBER))] {
            for net in nets {
                node.space.ip(&segment::address(verb, net, OTHER_UPLINK))?;
            }
        }
        node.addresses = nets(OTHER_NUMBER).iter().map(IpNet::addr).collect();
        // Which was lost with the address.
        self.underlay
            .show_the_way_out(node, OTHER_UPLINK, Subnet::Near)?;
        self.site.register_nodes();
        self.site.settle()?;
        self.until_all_are_reached()
    }

    fn until_all_are_reached(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let what = "all pods and nodes to be reached";
        until(what, BACK, || self.everybody_is_reached(what))?;
        Ok(began.elapsed())
    }

    /// Forth, back to what it was, back still further, and to what it was; a pod comes and goes each time, and an agent dies.
    fn jump(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        for (forth, back) in [(JUMP, -JUMP), (-JUMP, JUMP)] {
            for by in [forth, back] {
                let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
                clock_settime(ClockId::CLOCK_REALTIME, now + by)?;
                self.site.node_mut(1)?.0.kill_agent()?;
                self.site.start_agent(1)?;
                self.site.node(1)?.wait_until_ready()?;
                let node = self.site.nodes.first().context("a node")?;
                let binaries = &self.options.binaries;
                let pod = Pod::add(&mut self.site.run, node, "pod-jump", binaries)?;
                pod.delete(node, binaries)?;
                self.site.is_as_wanted()?;
            }
        }
        Ok(began.elapsed())
    }
}

fn uplink_of(number: u8) -> &'static str {
    let at = usize::from(number).checked_sub(1);
    at.and_then(|at| UPLINKS.get(at))
        .copied()
        .unwrap_or_default()
}

fn uplink_mtu(node: &Node) -> anyhow::Result<u32> {
    let path = format!("cat /sys/class/net/{}/mtu", uplink_of(NODE));
    let said = output(node.space.command("sh").args(["-c", &path]))?;
    Ok(said.trim().parse()?)
}
