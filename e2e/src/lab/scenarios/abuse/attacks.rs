//! What a hostile pod and a hostile host on the network of the nodes send.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use ipnet::IpNet;
use netweft_crds::{PodInterface, UdpParameters, VxlanParameters, names};

use crate::lab::scenarios::abuse::packets;
use crate::lab::scenarios::abuse::witness::FIRST_PORT;
use crate::lab::{Lab, LabMode};
use crate::traffic::inject::Injection;

/// The port of the Service whose endpoint is a tunnel.
pub const SERVICE_PORT: u16 = 53;
/// The node port of the same Service.
pub const NODE_PORT: u16 = 30053;
/// Invented neighbours of one flood.
pub const NEIGHBOURS: u16 = 200;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A pod of the first node.
    Pod,
    /// A host that is no node.
    Outside,
}

/// What an attack brings about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A datagram to this port arrives somewhere.
    Datagram(u16),
    /// A router advertisement arrives at a node.
    Advertisement,
    /// A node remembers invented neighbours.
    Neighbours,
    /// The attacker's node takes the attacker for another pod with this address.
    Stolen(IpAddr),
}

/// One attack.
pub struct Attack {
    /// Who sends what, in words.
    pub name: String,
    /// Who sends.
    pub actor: Actor,
    /// What is sent.
    pub injections: Vec<Injection>,
    /// How its success shows.
    pub effect: Effect,
    /// Whether it succeeds without the filter. Some meet a second defence.
    pub succeeds_without_filter: bool,
    /// Whether the attacker then receives the packets of a neighbour.
    pub steals: bool,
}

/// The address of the Service, of the family of `other`.
///
/// # Errors
/// None is known.
pub fn service_like(other: IpAddr) -> anyhow::Result<IpAddr> {
    let text = if other.is_ipv4() {
        "10.96.0.53"
    } else {
        "fd00:96::53"
    };
    Ok(text.parse()?)
}

/// The UDP port of the tunnel, if there is one.
pub fn tunnel_port(mode: LabMode) -> Option<u16> {
    match mode {
        LabMode::Vxlan | LabMode::VxlanCrossSubnet => Some(VxlanParameters::default().port),
        LabMode::Udp | LabMode::UdpCrossSubnet => Some(UdpParameters::default().port),
        LabMode::Ipip | LabMode::IpipCrossSubnet | LabMode::HostGw | LabMode::Underlay => None,
    }
}

/// Addresses of those whom it is about, of one family.
struct Cast {
    attacker: IpAddr,
    /// On the attacker's node.
    neighbour: IpAddr,
    /// On the second node.
    victim: IpAddr,
    /// On the third node.
    bystander: IpAddr,
    nodes: [IpAddr; 2],
    outside: IpAddr,
}

/// All attacks that the mode of the lab knows.
///
/// # Errors
/// The lab lacks somebody.
pub fn all(lab: &Lab) -> anyhow::Result<Vec<Attack>> {
    let mut list = List::default();
    for pool in lab.options.families.pools() {
        let cast = cast(lab, pool.addr())?;
        forged_sources(&mut list, &cast)?;
        if lab.options.pod_interface == PodInterface::Bridge {
            on_bridge(&mut list, lab, &cast)?;
        }
        if let Some(port) = tunnel_port(lab.options.mode) {
            encapsulated(&mut list, lab, &cast, port)?;
        }
    }
    discovery(&mut list, lab)?;
    Ok(list.attacks)
}

#[derive(Default)]
struct List {
    attacks: Vec<Attack>,
    used: u16,
}

impl List {
    /// A port that no other attack has.
    fn next_port(&mut self) -> u16 {
        self.used += 1;
        FIRST_PORT + self.used
    }

    fn add(&mut self, name: String, actor: Actor, injections: Vec<Injection>, effect: Effect) {
        self.attacks.push(Attack {
            name,
            actor,
            injections,
            effect,
            succeeds_without_filter: true,
            steals: false,
        });
    }
}

fn cast(lab: &Lab, family: IpAddr) -> anyhow::Result<Cast> {
    let pods = |node: &str| {
        let pods = lab.site.pods.iter().filter(|pod| pod.node == node);
        let addresses = pods.filter_map(|pod| pod.address_like(family));
        addresses.collect::<Vec<_>>()
    };
    let node = |number| {
        let node = lab.site.node(number)?;
        node.address_like(family).context("a node's address")
    };
    let [own, second, third] = ["node-1", "node-2", "node-3"].map(pods);
    let mut own = own.into_iter();
    let pod = "pods of the family on every node";
    let outside = lab.underlay.servers().map(|server| server.ip());
    let outside = outside.filter(|ip| ip.is_ipv4() == family.is_ipv4()).last();
    Ok(Cast {
        attacker: own.next().context(pod)?,
        neighbour: own.next().context(pod)?,
        victim: second.first().copied().context(pod)?,
        bystander: third.first().copied().context(pod)?,
        nodes: [node(1)?, node(2)?],
        outside: outside.context("a host outside")?,
    })
}

fn packet(to: IpAddr, packet: Vec<u8>) -> Injection {
    Injection::Packet { to, packet }
}

/// A pod sends from addresses that are not its own.
fn forged_sources(list: &mut List, cast: &Cast) -> anyhow::Result<()> {
    let family = if cast.attacker.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let [own_node, other_node] = cast.nodes;
    let mut cases = vec![
        (
            "a neighbour",
            cast.neighbour,
            "a pod of another node",
            cast.victim,
        ),
        ("a neighbour", cast.neighbour, "a node", other_node),
        (
            "a neighbour",
            cast.neighbour,
            "a host outside",
            cast.outside,
        ),
        (
            "another node's pod",
            cast.bystander,
            "a neighbour",
            cast.neighbour,
        ),
        (
            "a host outside",
            cast.outside,
            "a pod of another node",
            cast.victim,
        ),
    ];
    if cast.attacker.is_ipv6() {
        // In IPv4 the kernel refuses its own addresses (`fib_validate_source`).
        cases.push(("its node", own_node, "a host outside", cast.outside));
    }
    for (as_whom, from, to_whom, to) in cases {
        let port = list.next_port();
        let forged = packet(to, packets::udp(from, to, port, b"forged")?);
        let name = format!("{family}: a pod sends as {as_whom} to {to_whom}");
        list.add(name, Actor::Pod, vec![forged], Effect::Datagram(port));
    }
    if cast.attacker.is_ipv4() {
        let port = list.next_port();
        let loopback: IpAddr = "127.0.0.1".parse()?;
        let gateway = "169.254.1.1".parse()?;
        let forged = packet(
            gateway,
            packets::udp(cast.attacker, loopback, port, b"loop")?,
        );
        let name = "a pod sends to the loopback address of its node".to_owned();
        list.add(name, Actor::Pod, vec![forged], Effect::Datagram(port));
    }
    Ok(())
}

/// A pod on the bridge takes the place of its neighbour.
fn on_bridge(list: &mut List, lab: &Lab, cast: &Cast) -> anyhow::Result<()> {
    let mut pods = lab.site.pods.iter();
    let (attacker, neighbour) = pods.next().zip(pods.next()).context("two pods")?;
    let (own, other) = (attacker.space.mac("eth0")?, neighbour.space.mac("eth0")?);
    // IPv6 asks for no neighbour on behalf of a foreign source (`ndisc_solicit`).
    let known = format!(
        "neighbour replace {} lladdr {} dev eth0 nud permanent",
        cast.neighbour,
        packets::text(other)
    );
    attacker.space.ip(&known)?;
    let link = || "eth0".to_owned();
    let claim = match (cast.attacker, cast.neighbour) {
        (IpAddr::V4(_), IpAddr::V4(neighbour)) => packets::arp_reply(own, neighbour),
        (IpAddr::V6(own_address), IpAddr::V6(neighbour)) => {
            packets::neighbor_advertisement(own, own_address, neighbour)?
        }
        _ => anyhow::bail!("addresses of one family"),
    };
    let claim = Injection::Frame {
        link: link(),
        frame: claim,
    };
    let name = format!("a pod claims the address {} of a neighbour", cast.neighbour);
    list.add(
        name,
        Actor::Pod,
        vec![claim],
        Effect::Stolen(cast.neighbour),
    );
    let port = list.next_port();
    let packet = packets::udp(cast.neighbour, cast.victim, port, b"forged")?;
    let gateway = lab.site.node(1)?.space.mac("nw-br0")?;
    let frame = packets::frame(other, gateway, packets::ether_type(&packet), &packet);
    let forged = Injection::Frame {
        link: link(),
        frame,
    };
    let name = format!(
        "a pod sends with the Ethernet address of {}",
        cast.neighbour
    );
    list.add(name, Actor::Pod, vec![forged], Effect::Datagram(port));
    let added = list.attacks.iter_mut().rev().take(2);
    added.for_each(|attack| attack.steals = true);
    Ok(())
}

/// Encapsulated packets that come from no node.
fn encapsulated(list: &mut List, lab: &Lab, inner: &Cast, port: u16) -> anyhow::Result<()> {
    let outer = lab.site.node(1)?.addresses.first().copied();
    let outer = cast(lab, outer.context("a node has an address")?)?;
    let [own_node, other_node] = outer.nodes;
    let service = service_like(own_node)?;
    let family = if inner.victim.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let gateway = tunnel_address(lab, outer.attacker)?;
    let broadcast = packets::broadcast_like(other_node);
    let mut cases = vec![
        (Actor::Pod, "another node", other_node, port, 2),
        (Actor::Pod, "its own node", own_node, port, 1),
        (
            Actor::Pod,
            "the tunnel address of its node",
            gateway,
            port,
            1,
        ),
        (Actor::Pod, "a Service", service, SERVICE_PORT, 2),
        (Actor::Outside, "a node", other_node, port, 2),
        (Actor::Outside, "a node port", own_node, NODE_PORT, 2),
    ];
    cases.extend(broadcast.map(|all| (Actor::Outside, "everybody", all, port, 2)));
    for (actor, to_whom, to, outer_port, node) in cases {
        let mark = list.next_port();
        let target = if node == 1 {
            inner.neighbour
        } else {
            inner.victim
        };
        let payload = payload(
            lab,
            node,
            &packets::udp(inner.bystander, target, mark, b"in")?,
        );
        let to = SocketAddr::new(to, outer_port);
        let injections = vec![Injection::Datagram { to, payload }];
        let name = format!("{actor:?} sends encapsulated {family} to {to_whom}");
        list.add(name, actor, injections, Effect::Datagram(mark));
    }
    if outer.victim.is_ipv4() {
        let mark = list.next_port();
        let inside = packets::udp(inner.bystander, inner.victim, mark, &[0; 64])?;
        let whole = packets::udp(outer.attacker, other_node, port, &payload(lab, 2, &inside))?;
        let parts = packets::fragments(&whole)?.map(|part| packet(other_node, part));
        let name = format!("a pod sends encapsulated {family} in fragments to another node");
        list.add(name, Actor::Pod, parts.to_vec(), Effect::Datagram(mark));
    }
    if lab.options.mode != LabMode::Vxlan {
        // The relay accepts datagrams from the address and the port of a peer only.
        let attacks = list.attacks.iter_mut();
        let encapsulated = attacks.filter(|attack| attack.name.contains("encapsulated"));
        encapsulated.for_each(|attack| attack.succeeds_without_filter = false);
    }
    Ok(())
}

/// The first node's own address on the tunnel, of the family of `other`.
fn tunnel_address(lab: &Lab, other: IpAddr) -> anyhow::Result<IpAddr> {
    let link = lab.options.mode.link().context("the mode has a tunnel")?;
    let family = if other.is_ipv4() { "-4" } else { "-6" };
    let node = &lab.site.node(1)?.space;
    let listed = node.ip(&format!("-o {family} address show dev {link} scope global"))?;
    let net = listed
        .split_whitespace()
        .nth(3)
        .context("the tunnel has an address")?;
    Ok(net.parse::<IpNet>()?.addr())
}

/// What a tunnel's datagram carries for a node.
fn payload(lab: &Lab, node: usize, packet: &[u8]) -> Vec<u8> {
    if lab.options.mode != LabMode::Vxlan {
        return packet.to_vec();
    }
    let mac = names::vtep_mac(&format!("node-{node}"));
    packets::vxlan(VxlanParameters::default().vni, mac, packet)
}

/// Router advertisements, and neighbours that do not exist.
fn discovery(list: &mut List, lab: &Lab) -> anyhow::Result<()> {
    let pod = lab.site.pods.first().context("there is a pod")?;
    let own = pod.space.mac("eth0")?;
    // As a frame: a pod of an IPv4 cluster may have no IPv6 address to send from.
    let on_link = |group: u8, packet: Vec<u8>| Injection::Frame {
        link: "eth0".to_owned(),
        frame: packets::frame(own, [0x33, 0x33, 0, 0, 0, group], 0x86dd, &packet),
    };
    let name = "a pod advertises itself as a router".to_owned();
    let advertisement = packets::advertisement()?;
    let sent = vec![on_link(1, advertisement.clone())];
    list.add(name, Actor::Pod, sent, Effect::Advertisement);
    if lab.options.mode == LabMode::Vxlan {
        let node = lab.site.node(2)?.addresses.first().copied();
        let node = node.context("a node has an address")?;
        let to = SocketAddr::new(node, VxlanParameters::default().port);
        let payload = payload(lab, 2, &advertisement);
        let sent = vec![Injection::Datagram { to, payload }];
        let name = "Outside sends an encapsulated router advertisement".to_owned();
        list.add(name, Actor::Outside, sent, Effect::Advertisement);
    }
    let forwards_ipv6 = lab.options.families.has(Ipv6Addr::LOCALHOST.into());
    if lab.options.pod_interface == PodInterface::Routed && forwards_ipv6 {
        let solicitations = (0..NEIGHBOURS).map(packets::solicitation);
        let sent = solicitations.map(|packet| Ok(on_link(2, packet?)));
        let name = "a pod invents neighbours".to_owned();
        list.add(
            name,
            Actor::Pod,
            sent.collect::<anyhow::Result<_>>()?,
            Effect::Neighbours,
        );
    }
    Ok(())
}
