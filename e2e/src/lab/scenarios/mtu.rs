//! Packets of every size: what fits the pod's MTU passes unfragmented, and what does not is answered and never lost in silence.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use netweft_crds::PodInterface;

use crate::harness::command::run;
use crate::harness::poll::until;
use crate::lab::Lab;
use crate::lab::cluster::nodes::TCP_PORT;
use crate::lab::node::pod::Pod;
use crate::lab::topology::namespace::Namespace;

/// Bytes by which both ends of a pod's link are made larger than they should be.
const TOO_LARGE: u32 = 8;

impl Lab {
    /// From the first pod to one on each other node, by ICMP with and without room to spare, by TCP and by UDP.
    ///
    /// # Errors
    /// A packet that fits is lost, or one that does not is not answered.
    pub fn check_sizes(&mut self) -> anyhow::Result<()> {
        self.site.start_servers(false)?;
        let first = self.site.pods.first().context("a pod")?;
        let mtu = first.mtu()?;
        let others = self.site.pods.iter().filter(|pod| pod.node != first.node);
        for other in others {
            for target in &other.addresses {
                check_fit(&first.space, *target, mtu)?;
                self.check_streams(first, *target)?;
            }
        }
        if self.options.pod_interface == PodInterface::Routed {
            self.check_too_large(first, mtu)?;
        }
        println!("packets of 64 to {mtu} bytes pass, larger ones are answered");
        Ok(())
    }

    /// The server sees the pod's own address, and gets and returns what does not fit one packet.
    fn check_streams(&self, from: &Pod, target: IpAddr) -> anyhow::Result<()> {
        let own = from.address_like(target).context("a pod's address")?;
        let (binaries, server) = (&self.options.binaries, SocketAddr::new(target, TCP_PORT));
        for (protocol, payload) in [("udp", 18), ("udp", 1200), ("tcp", 1_000_000)] {
            let ask = || from.space.ask(binaries, protocol, server, payload);
            // The server may have started only just now.
            let seen = until("a pod's server", Duration::from_secs(5), ask)?;
            ensure!(
                seen.starts_with(&format!("peer={own} ")),
                "{target} was asked by {protocol} from {own} and saw {seen:?}"
            );
        }
        Ok(())
    }

    /// A pod that sends a packet above the MTU gets an ICMP error with the MTU from its node.
    fn check_too_large(&self, from: &Pod, mtu: u32) -> anyhow::Result<()> {
        let node = self.site.nodes.iter().find(|node| node.name == from.node);
        let node = node.context("a pod has a node")?;
        let address = from.addresses.first().context("a pod's address")?;
        let route = node.space.ip(&format!("-oneline route get {address}"))?;
        let link = route
            .split_whitespace()
            .skip_while(|word| *word != "dev")
            .nth(1);
        let link = link.context("a route has a link")?;
        let resize = |mtu: u32| {
            node.space.ip(&format!("link set {link} mtu {mtu}"))?;
            from.space.ip(&format!("link set eth0 mtu {mtu}"))
        };
        resize(mtu + TOO_LARGE)?;
        let others = self.site.pods.iter().filter(|pod| pod.node != from.node);
        let checked = others
            .flat_map(|pod| &pod.addresses)
            .try_for_each(|target| check_answered(&from.space, *target, mtu));
        resize(mtu)?;
        checked
    }
}

/// One packet of exactly `size` bytes that must not be fragmented: whether it was answered, and what ping says.
fn ping(space: &Namespace, target: IpAddr, size: u32) -> anyhow::Result<(bool, String)> {
    let headers = if target.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let mut command = space.command("ping");
    command.args(["-c", "1", "-W", "2", "-M", "do", "-s"]);
    command.args([(size - headers).to_string(), target.to_string()]);
    let done = run(&mut command)?;
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    Ok((done.status.success(), said.into_owned()))
}

fn check_fit(space: &Namespace, target: IpAddr, mtu: u32) -> anyhow::Result<()> {
    for size in [64, 512, mtu - 1, mtu] {
        let (answered, said) = ping(space, target, size)?;
        ensure!(answered, "{target} does not answer to {size} bytes: {said}");
    }
    let (answered, said) = ping(space, target, mtu + 1)?;
    ensure!(
        !answered && said.to_lowercase().contains("message too long"),
        "{} bytes are not refused on a link of {mtu}: {said}",
        mtu + 1
    );
    Ok(())
}

fn check_answered(space: &Namespace, target: IpAddr, mtu: u32) -> anyhow::Result<()> {
    let (answered, said) = ping(space, target, mtu + 1)?;
    // "Frag needed and DF set (mtu = 1350)", "Packet too big: mtu=1350".
    let reported = said.contains(&format!("mtu = {mtu}")) || said.contains(&format!("mtu={mtu}"));
    ensure!(
        !answered && reported,
        "a packet of {} bytes to {target} is not answered by \"too large, at most {mtu}\": {said}",
        mtu + 1
    );
    Ok(())
}
