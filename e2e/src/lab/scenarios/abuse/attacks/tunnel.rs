//! Encapsulated packets from sources that are not nodes.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use ipnet::IpNet;
use netweft_crds::{UdpParameters, VxlanParameters, names};

use crate::lab::scenarios::abuse::attacks::{
    Attacker, Effect, Endpoints, List, NODE_PORT, SERVICE_PORT, endpoints, family_name, packet,
    service_of_family,
};
use crate::lab::scenarios::abuse::packets;
use crate::lab::{Lab, LabMode};
use crate::traffic::inject::Injection;

/// The UDP port of the tunnel, if the mode has one.
pub fn tunnel_port(mode: LabMode) -> Option<u16> {
    match mode {
        LabMode::Vxlan | LabMode::VxlanCrossSubnet => Some(VxlanParameters::default().port),
        LabMode::Udp | LabMode::UdpCrossSubnet => Some(UdpParameters::default().port),
        LabMode::Ipip | LabMode::IpipCrossSubnet | LabMode::HostGw | LabMode::Underlay => None,
    }
}

/// Adds attacks with encapsulated packets to `port`. `inner` are the endpoints of the encapsulated packets.
pub fn add_attacks(list: &mut List, lab: &Lab, inner: &Endpoints, port: u16) -> anyhow::Result<()> {
    let first = list.attacks.len();
    let outer = lab.cluster.node(1)?.addresses.first().copied();
    let outer = endpoints(lab, outer.context("the node has no address")?)?;
    for target in targets(lab, &outer, port)? {
        add_datagram(list, lab, inner, &target)?;
    }
    if outer.victim.is_ipv4() {
        add_fragments(list, lab, [inner, &outer], port)?;
    }
    if lab.options.mode != LabMode::Vxlan {
        // The relay accepts only datagrams from the address and port of a peer.
        let added = list.attacks.iter_mut().skip(first);
        added.for_each(|attack| attack.succeeds_without_filter = false);
    }
    Ok(())
}

/// The destination of an encapsulated packet.
struct Target {
    attacker: Attacker,
    /// Description of the destination, for messages.
    name: &'static str,
    destination: SocketAddr,
    /// Number of the node that decapsulates the packet.
    node: usize,
}

fn targets(lab: &Lab, outer: &Endpoints, port: u16) -> anyhow::Result<Vec<Target>> {
    let [own_node, other_node] = outer.nodes;
    let service = service_of_family(own_node);
    let tunnel = tunnel_address(lab, outer.attacker)?;
    let target = |attacker, name, address, port, node| Target {
        attacker,
        name,
        destination: SocketAddr::new(address, port),
        node,
    };
    let (pod, host) = (Attacker::Pod, Attacker::ExternalHost);
    let mut targets = vec![
        target(pod, "another node", other_node, port, 2),
        target(pod, "its own node", own_node, port, 1),
        target(pod, "the tunnel address of its node", tunnel, port, 1),
        target(pod, "a Service", service, SERVICE_PORT, 2),
        target(host, "a node", other_node, port, 2),
        target(host, "a node port", own_node, NODE_PORT, 2),
    ];
    let broadcast = packets::broadcast_of(other_node);
    targets.extend(broadcast.map(|all| target(host, "the broadcast address", all, port, 2)));
    Ok(targets)
}

/// Adds an attack with an encapsulated packet in a datagram.
fn add_datagram(
    list: &mut List,
    lab: &Lab,
    inner: &Endpoints,
    target: &Target,
) -> anyhow::Result<()> {
    let Target {
        attacker,
        name,
        destination,
        node,
    } = *target;
    let inner_port = list.next_port();
    let inner_destination = if node == 1 {
        inner.neighbour
    } else {
        inner.victim
    };
    let inner_packet = packets::udp(inner.bystander, inner_destination, inner_port, b"in")?;
    let datagram = Injection::Datagram {
        to: destination,
        payload: payload(lab, node, &inner_packet),
    };
    let attacker_name = match attacker {
        Attacker::Pod => "a pod",
        Attacker::ExternalHost => "an external host",
    };
    let family = family_name(inner.victim);
    let name = format!("{attacker_name} sends encapsulated {family} to {name}");
    list.add(name, attacker, vec![datagram], Effect::Datagram(inner_port));
    Ok(())
}

/// Adds an attack with an encapsulated packet in a fragmented datagram.
fn add_fragments(
    list: &mut List,
    lab: &Lab,
    [inner, outer]: [&Endpoints; 2],
    port: u16,
) -> anyhow::Result<()> {
    let [_, node] = outer.nodes;
    let inner_port = list.next_port();
    let inner_packet = packets::udp(inner.bystander, inner.victim, inner_port, &[0; 64])?;
    let payload = payload(lab, 2, &inner_packet);
    let outer_packet = packets::udp(outer.attacker, node, port, &payload)?;
    let fragments = packets::fragments(&outer_packet)?.map(|fragment| packet(node, fragment));
    let family = family_name(inner.victim);
    list.add(
        format!("a pod sends encapsulated {family} in fragments to another node"),
        Attacker::Pod,
        fragments.to_vec(),
        Effect::Datagram(inner_port),
    );
    Ok(())
}

/// The address of the first node's tunnel link, of the family of `other`.
fn tunnel_address(lab: &Lab, other: IpAddr) -> anyhow::Result<IpAddr> {
    let link = lab
        .options
        .mode
        .link()
        .context("the mode has no tunnel link")?;
    let family = if other.is_ipv4() { "-4" } else { "-6" };
    let node = &lab.cluster.node(1)?.namespace;
    let listed = node.ip(&format!("-o {family} address show dev {link} scope global"))?;
    let net = listed
        .split_whitespace()
        .nth(3)
        .context("the tunnel link has no address")?;
    Ok(net.parse::<IpNet>()?.addr())
}

/// The payload of a tunnel datagram to the node with this number.
pub fn payload(lab: &Lab, node: usize, packet: &[u8]) -> Vec<u8> {
    if lab.options.mode != LabMode::Vxlan {
        return packet.to_vec();
    }
    let mac = names::vtep_mac(&format!("node-{node}"));
    packets::vxlan(VxlanParameters::default().vni, mac, packet)
}
