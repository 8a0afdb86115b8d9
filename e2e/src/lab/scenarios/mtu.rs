//! Packets of all sizes. Packets up to the pod's MTU pass without fragmentation; larger packets are answered with an ICMP error.

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

/// Bytes added to the MTU at both ends of a pod's link, so that the pod sends packets larger than the tunnel's MTU.
const MTU_EXCESS: u32 = 8;

impl Lab {
    /// Checks ICMP, TCP and UDP from the first pod to the pods of all other nodes.
    ///
    /// # Errors
    /// A packet within the MTU is lost, a larger one is not answered with the MTU, or a program cannot be run.
    pub fn check_sizes(&mut self) -> anyhow::Result<()> {
        self.cluster.start_servers(false)?;
        let first = self
            .cluster
            .pods
            .first()
            .context("the pod does not exist")?;
        let mtu = first.mtu()?;
        let others = self
            .cluster
            .pods
            .iter()
            .filter(|pod| pod.node != first.node);
        for other in others {
            for target in &other.addresses {
                check_fit(&first.namespace, *target, mtu)?;
                self.check_payloads(first, *target)?;
            }
        }
        if self.options.pod_interface == PodInterface::Routed {
            self.check_too_large(first, mtu)?;
        }
        println!("packets of 64 to {mtu} bytes pass, larger ones are answered with the MTU");
        Ok(())
    }

    /// The server sees the pod's own address, and payloads larger than one packet are returned completely.
    fn check_payloads(&self, from: &Pod, target: IpAddr) -> anyhow::Result<()> {
        let own = from
            .address_of_family(target)
            .context("the pod has no address of the family")?;
        let (binaries, server) = (&self.options.binaries, SocketAddr::new(target, TCP_PORT));
        for (protocol, payload) in [("udp", 18), ("udp", 1200), ("tcp", 1_000_000)] {
            let request = || from.namespace.ask(binaries, protocol, server, payload);
            // The server may not listen yet.
            let answer = until("a pod's server", Duration::from_secs(5), request)?;
            ensure!(
                answer.starts_with(&format!("peer={own} ")),
                "the {protocol} server on {target} should see {own} and answered {answer:?}"
            );
        }
        Ok(())
    }

    /// A pod with a link MTU above the tunnel's MTU gets an ICMP error from its node with the correct MTU.
    fn check_too_large(&self, from: &Pod, mtu: u32) -> anyhow::Result<()> {
        let node = self
            .cluster
            .nodes
            .iter()
            .find(|node| node.name == from.node);
        let node = node.context("the pod's node does not exist")?;
        let address = from
            .addresses
            .first()
            .context("the pod has no address of the family")?;
        let route = node
            .namespace
            .ip(&format!("-oneline route get {address}"))?;
        let link = route
            .split_whitespace()
            .skip_while(|word| *word != "dev")
            .nth(1);
        let link = link.context("the route has no link")?;
        let resize = |mtu: u32| {
            node.namespace.ip(&format!("link set {link} mtu {mtu}"))?;
            from.namespace.ip(&format!("link set eth0 mtu {mtu}"))
        };
        resize(mtu + MTU_EXCESS)?;
        let others = self.cluster.pods.iter().filter(|pod| pod.node != from.node);
        let checked = others
            .flat_map(|pod| &pod.addresses)
            .try_for_each(|target| check_answered(&from.namespace, *target, mtu));
        resize(mtu)?;
        checked
    }
}

/// Sends one packet of exactly `size` bytes with DF set. Returns whether an answer came, and the output of ping.
fn ping(namespace: &Namespace, target: IpAddr, size: u32) -> anyhow::Result<(bool, String)> {
    let headers = if target.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let mut command = namespace.command("ping");
    command.args(["-c", "1", "-W", "2", "-M", "do", "-s"]);
    command.args([(size - headers).to_string(), target.to_string()]);
    let result = run(&mut command)?;
    let output = String::from_utf8_lossy(&result.stdout) + String::from_utf8_lossy(&result.stderr);
    Ok((result.status.success(), output.into_owned()))
}

fn check_fit(namespace: &Namespace, target: IpAddr, mtu: u32) -> anyhow::Result<()> {
    for size in [64, 512, mtu - 1, mtu] {
        let (answered, output) = ping(namespace, target, size)?;
        ensure!(
            answered,
            "{target} does not answer a packet of {size} bytes: {output}"
        );
    }
    let (answered, output) = ping(namespace, target, mtu + 1)?;
    ensure!(
        !answered && output.to_lowercase().contains("message too long"),
        "a packet of {} bytes is not rejected on a link with MTU {mtu}: {output}",
        mtu + 1
    );
    Ok(())
}

fn check_answered(namespace: &Namespace, target: IpAddr, mtu: u32) -> anyhow::Result<()> {
    let (answered, output) = ping(namespace, target, mtu + 1)?;
    // "Frag needed and DF set (mtu = 1350)", "Packet too big: mtu=1350".
    let has_mtu =
        output.contains(&format!("mtu = {mtu}")) || output.contains(&format!("mtu={mtu}"));
    ensure!(
        !answered && has_mtu,
        "a packet of {} bytes to {target} is not answered with an ICMP error with MTU {mtu}: {output}",
        mtu + 1
    );
    Ok(())
}
