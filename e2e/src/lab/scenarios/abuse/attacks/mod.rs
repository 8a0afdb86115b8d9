//! The attacks of a hostile pod, and of a hostile host on the network of the nodes.

mod bridge;
mod tunnel;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use netweft_crds::{PodInterface, VxlanParameters};

use crate::lab::scenarios::abuse::packet_counters::FIRST_PORT;
use crate::lab::scenarios::abuse::packets::{self, Mac};
use crate::lab::{Lab, LabMode};
use crate::traffic::inject::Injection;

pub use crate::lab::scenarios::abuse::attacks::tunnel::tunnel_port;

/// The port of the Service whose endpoint is the tunnel port of a node.
pub const SERVICE_PORT: u16 = 53;
/// The node port of the same Service.
pub const NODE_PORT: u16 = 30053;
/// The number of forged neighbours in one round of a flood.
pub const NEIGHBOURS: u16 = 200;

/// The origin of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attacker {
    /// A pod of the first node.
    Pod,
    /// The external host.
    ExternalHost,
}

/// The effect of a successful attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A datagram to this port is delivered in any namespace except the attacker's.
    Datagram(u16),
    /// A node receives a router advertisement.
    RouterAdvertisement,
    /// A node has neighbour entries of forged neighbours.
    Neighbours,
    /// The neighbour entry of this address, on the attacker's node, has the attacker's MAC address.
    NeighbourEntry(IpAddr),
    /// The bridge of the attacker's node has an FDB entry for this MAC address.
    FdbEntry(Mac),
}

/// One attack.
pub struct Attack {
    /// Description of the attack, for messages.
    pub name: String,
    /// The origin.
    pub attacker: Attacker,
    /// The packets.
    pub injections: Vec<Injection>,
    /// The effect by which a success is detected.
    pub effect: Effect,
    /// Whether the attack succeeds without the filter. Against some attacks there is a second protection.
    pub succeeds_without_filter: bool,
    /// Whether a success redirects packets of a neighbour to the attacker.
    pub redirects_neighbour: bool,
}

/// The address of the Service, of the family of `other`.
pub fn service_of_family(other: IpAddr) -> IpAddr {
    if other.is_ipv4() {
        IpAddr::from([10, 96, 0, 53])
    } else {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x53))
    }
}

/// The addresses of attackers and targets, of one family.
struct Endpoints {
    /// The first pod of node 1.
    attacker: IpAddr,
    /// Another pod of node 1.
    neighbour: IpAddr,
    /// A pod of node 2.
    victim: IpAddr,
    /// A pod of node 3.
    bystander: IpAddr,
    /// Nodes 1 and 2.
    nodes: [IpAddr; 2],
    external_host: IpAddr,
}

/// All attacks that apply to the mode of the lab.
///
/// # Errors
/// The lab has no pod of a family on one of its nodes, or a packet cannot be built.
pub fn all(lab: &Lab) -> anyhow::Result<Vec<Attack>> {
    let mut list = List::default();
    for pool in lab.options.families.pools() {
        let endpoints = endpoints(lab, pool.addr())?;
        forged_sources(&mut list, &endpoints)?;
        if lab.options.pod_interface == PodInterface::Bridge {
            bridge::add_attacks(&mut list, lab, &endpoints)?;
        }
        if let Some(port) = tunnel_port(lab.options.mode) {
            tunnel::add_attacks(&mut list, lab, &endpoints, port)?;
        }
    }
    neighbour_discovery(&mut list, lab)?;
    Ok(list.attacks)
}

#[derive(Default)]
struct List {
    attacks: Vec<Attack>,
    /// Number of ports in use.
    ports: u16,
}

impl List {
    /// A port that no other attack uses.
    fn next_port(&mut self) -> u16 {
        self.ports += 1;
        FIRST_PORT + self.ports
    }

    fn add(
        &mut self,
        name: String,
        attacker: Attacker,
        injections: Vec<Injection>,
        effect: Effect,
    ) {
        self.attacks.push(Attack {
            name,
            attacker,
            injections,
            effect,
            succeeds_without_filter: true,
            redirects_neighbour: false,
        });
    }
}

/// The endpoints of the family of `family`.
fn endpoints(lab: &Lab, family: IpAddr) -> anyhow::Result<Endpoints> {
    let pods = |node: &str| {
        let pods = lab.cluster.pods.iter().filter(|pod| pod.node == node);
        let addresses = pods.filter_map(|pod| pod.address_of_family(family));
        addresses.collect::<Vec<_>>()
    };
    let node = |number| {
        let node = lab.cluster.node(number)?;
        node.address_of_family(family)
            .context("the node has no address of the family")
    };
    let [own, second, third] = ["node-1", "node-2", "node-3"].map(pods);
    let mut own = own.into_iter();
    let missing = "a node has too few pods of the family";
    let external_host = lab.underlay.servers().map(|server| server.ip());
    let external_host = external_host
        .filter(|ip| ip.is_ipv4() == family.is_ipv4())
        .last();
    Ok(Endpoints {
        attacker: own.next().context(missing)?,
        neighbour: own.next().context(missing)?,
        victim: second.first().copied().context(missing)?,
        bystander: third.first().copied().context(missing)?,
        nodes: [node(1)?, node(2)?],
        external_host: external_host.context("the external host has no address of the family")?,
    })
}

/// An injection of an IP packet.
fn packet(to: IpAddr, packet: Vec<u8>) -> Injection {
    Injection::Packet { to, packet }
}

/// The name of the family of an address.
fn family_name(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A pod sends packets with source addresses other than its own.
fn forged_sources(list: &mut List, endpoints: &Endpoints) -> anyhow::Result<()> {
    let family = family_name(endpoints.attacker);
    let [own_node, other_node] = endpoints.nodes;
    let mut cases = vec![
        (
            "a neighbour",
            endpoints.neighbour,
            "a pod of another node",
            endpoints.victim,
        ),
        ("a neighbour", endpoints.neighbour, "a node", other_node),
        (
            "a neighbour",
            endpoints.neighbour,
            "an external host",
            endpoints.external_host,
        ),
        (
            "a pod of another node",
            endpoints.bystander,
            "a neighbour",
            endpoints.neighbour,
        ),
        (
            "an external host",
            endpoints.external_host,
            "a pod of another node",
            endpoints.victim,
        ),
    ];
    if endpoints.attacker.is_ipv6() {
        // In IPv4 the kernel drops packets with one of its own addresses as source (`fib_validate_source`).
        cases.push((
            "its node",
            own_node,
            "an external host",
            endpoints.external_host,
        ));
    }
    for (source_name, source, destination_name, destination) in cases {
        let port = list.next_port();
        let forged = packets::udp(source, destination, port, b"forged")?;
        let name =
            format!("{family}: a pod sends with the source of {source_name} to {destination_name}");
        list.add(
            name,
            Attacker::Pod,
            vec![packet(destination, forged)],
            Effect::Datagram(port),
        );
    }
    if endpoints.attacker.is_ipv4() {
        forged_loopback(list, endpoints)?;
    }
    Ok(())
}

/// A pod sends a packet to the loopback address of its node.
fn forged_loopback(list: &mut List, endpoints: &Endpoints) -> anyhow::Result<()> {
    let port = list.next_port();
    let loopback: IpAddr = "127.0.0.1".parse()?;
    let gateway = "169.254.1.1".parse()?;
    let forged = packet(
        gateway,
        packets::udp(endpoints.attacker, loopback, port, b"loop")?,
    );
    let name = "a pod sends to the loopback address of its node".to_owned();
    list.add(name, Attacker::Pod, vec![forged], Effect::Datagram(port));
    Ok(())
}

/// Router advertisements, and solicitations of forged neighbours.
fn neighbour_discovery(list: &mut List, lab: &Lab) -> anyhow::Result<()> {
    let pod = lab.cluster.pods.first().context("the lab has no pod")?;
    let own = pod.namespace.mac("eth0")?;
    // A frame instead of a packet, because a pod of an IPv4 cluster may have no IPv6 address.
    let multicast = |group: u8, packet: Vec<u8>| Injection::Frame {
        link: "eth0".to_owned(),
        frame: packets::frame(own, [0x33, 0x33, 0, 0, 0, group], 0x86dd, &packet),
    };
    let name = "a pod advertises itself as a router".to_owned();
    let advertisement = packets::router_advertisement()?;
    let sent = vec![multicast(1, advertisement.clone())];
    list.add(name, Attacker::Pod, sent, Effect::RouterAdvertisement);
    if lab.options.mode == LabMode::Vxlan {
        let node = lab.cluster.node(2)?.addresses.first().copied();
        let node = node.context("the node has no address")?;
        let to = SocketAddr::new(node, VxlanParameters::default().port);
        let payload = tunnel::payload(lab, 2, &advertisement);
        let sent = vec![Injection::Datagram { to, payload }];
        let name = "an external host sends an encapsulated router advertisement".to_owned();
        list.add(
            name,
            Attacker::ExternalHost,
            sent,
            Effect::RouterAdvertisement,
        );
    }
    let forwards_ipv6 = lab.options.families.has(Ipv6Addr::LOCALHOST.into());
    if lab.options.pod_interface == PodInterface::Routed && forwards_ipv6 {
        let solicitations = (0..NEIGHBOURS).map(packets::router_solicitation);
        let sent = solicitations.map(|packet| Ok(multicast(2, packet?)));
        let name = "a pod forges neighbours".to_owned();
        list.add(
            name,
            Attacker::Pod,
            sent.collect::<anyhow::Result<_>>()?,
            Effect::Neighbours,
        );
    }
    Ok(())
}
