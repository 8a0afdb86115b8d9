//! Attacks on a neighbour on the bridge of the same node.

use std::net::IpAddr;

use anyhow::Context;

use crate::lab::Lab;
use crate::lab::scenarios::abuse::attacks::{Attacker, Effect, Endpoints, List};
use crate::lab::scenarios::abuse::packets::{self, Mac};
use crate::traffic::inject::Injection;

/// The MAC addresses of the attacking pod, its neighbour and the bridge.
struct Macs {
    attacker: Mac,
    neighbour: Mac,
    bridge: Mac,
}

/// Adds the attacks of a pod that claims addresses of its neighbour or forges MAC addresses.
pub fn add_attacks(list: &mut List, lab: &Lab, endpoints: &Endpoints) -> anyhow::Result<()> {
    let mut pods = lab.cluster.pods.iter();
    let (attacker, neighbour) = pods
        .next()
        .zip(pods.next())
        .context("the lab has fewer than two pods")?;
    let macs = Macs {
        attacker: attacker.namespace.mac("eth0")?,
        neighbour: neighbour.namespace.mac("eth0")?,
        bridge: lab.cluster.node(1)?.namespace.mac("nw-br0")?,
    };
    // The kernel sends no neighbour solicitation for packets with a source of another host (`ndisc_solicit`).
    let add_neighbour = format!(
        "neighbour replace {} lladdr {} dev eth0 nud permanent",
        endpoints.neighbour,
        packets::text(macs.neighbour)
    );
    attacker.namespace.ip(&add_neighbour)?;
    claim_addresses(list, endpoints, &macs)?;
    forge_macs(list);
    Ok(())
}

/// An injection of a frame on the pod's link.
fn on_eth0(frame: Vec<u8>) -> Injection {
    Injection::Frame {
        link: "eth0".to_owned(),
        frame,
    }
}

/// The pod claims the IP address of its neighbour, then the MAC address.
fn claim_addresses(list: &mut List, endpoints: &Endpoints, macs: &Macs) -> anyhow::Result<()> {
    let address = endpoints.neighbour;
    let claim = match (endpoints.attacker, address) {
        (IpAddr::V4(_), IpAddr::V4(neighbour)) => packets::gratuitous_arp(macs.attacker, neighbour),
        (IpAddr::V6(attacker), IpAddr::V6(neighbour)) => {
            packets::neighbor_advertisement(macs.attacker, attacker, neighbour)?
        }
        _ => anyhow::bail!("the addresses are of different families"),
    };
    list.add(
        format!("a pod claims the address {address} of a neighbour"),
        Attacker::Pod,
        vec![on_eth0(claim)],
        Effect::NeighbourEntry(address),
    );
    let port = list.next_port();
    let packet = packets::udp(address, endpoints.victim, port, b"forged")?;
    let ether_type = packets::ether_type(&packet);
    let frame = packets::frame(macs.neighbour, macs.bridge, ether_type, &packet);
    list.add(
        format!("a pod sends with the MAC address of {address}"),
        Attacker::Pod,
        vec![on_eth0(frame)],
        Effect::Datagram(port),
    );
    let added = list.attacks.iter_mut().rev().take(2);
    added.for_each(|attack| attack.redirects_neighbour = true);
    Ok(())
}

/// The pod sends frames with forged MAC addresses.
fn forge_macs(list: &mut List) {
    // The bridge delivers frames to reserved group addresses (IEEE 802.1D) only to the node, by another hook.
    for (number, group) in [(1, packets::BROADCAST), (2, packets::LLDP)] {
        let mac = [0x02, 0, 0, 0, 0xbd, number];
        let frame = packets::frame(mac, group, 0x88b5, b"forged");
        let destination = packets::text(group);
        list.add(
            format!("a pod sends with a forged MAC address to {destination}"),
            Attacker::Pod,
            vec![on_eth0(frame)],
            Effect::FdbEntry(mac),
        );
    }
}
