//! A mode's tunnel on this node: the link, its addresses, and the routes into it. What the kinds of tunnel differ in is in
//! their own files.
//!
//! ```text
//!   vxlan   10.244.1.0/26 via 10.244.1.0 dev nw-vx4096 onlink src <own>    and neighbour, forwarding entry (`vxlan`)
//!   ipip    10.244.1.0/26 via 192.0.2.2 dev nw-ipip onlink src <own>       the next hop is the other node
//!   udp     10.244.1.0/26 dev nw-udp8285 src <own>                         the relay knows the node (`udp.json`)
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_common::link_names;
use netweft_crds::{IpFamily, NodeMode, Transport};
use netweft_netstate::model::{Address, AddressKey, Link, LinkKind, LinkName, Route, RouteKey};

use crate::apply::sysctl;
use crate::desired::tunnel_address::tunnel_addresses;
use crate::desired::unreachable::Unreachable;
use crate::desired::{Desired, carries, fits, udp, unicast, vxlan};
use crate::inputs::host_facts::Facts;
use crate::inputs::{Inputs, RemoteBlock};

/// The tunnel of one mode.
pub struct Tunnel<'a> {
    inputs: &'a Inputs,
    facts: &'a Facts,
    mode: &'a NodeMode,
    transport: Transport,
    name: LinkName,
    local: IpAddr,
    mtu: u32,
    sources: Sources<'a>,
}

impl<'a> Tunnel<'a> {
    /// The tunnel of `mode`, whose transport is `transport`; `None` if the node has no address of the outer family, or the way is none.
    pub fn new(
        inputs: &'a Inputs,
        facts: &'a Facts,
        mode: &'a NodeMode,
        transport: Transport,
        mtu: u32,
    ) -> Option<Self> {
        let name = match transport {
            Transport::Vxlan(parameters) => vxlan::link_name(parameters),
            Transport::Ipip => link_names::IPIP.parse().ok(),
            Transport::Udp(parameters) => udp::link_name(parameters),
            Transport::Direct | Transport::Bgp => None,
        };
        Some(Self {
            inputs,
            facts,
            mode,
            transport,
            name: name?,
            local: inputs.local(mode)?,
            mtu,
            sources: Sources::new(inputs, mode, mtu),
        })
    }

    /// Add the link with its addresses and settings.
    pub fn add_to(&self, desired: &mut Desired) {
        if let Transport::Udp(parameters) = self.transport {
            udp::add_tunnel(&self.name, parameters, self.local, &mut desired.udp);
            // The link is the relay's, who makes it when it has read of it.
            let relay = self.facts.tuns.get(&self.name);
            desired.problems.extend(udp::waiting(&self.name, relay));
            if relay.is_none() {
                return;
            }
        }
        let Some(kind) = self.link_kind() else {
            return;
        };
        let mac =
            matches!(self.transport, Transport::Vxlan(_)).then(|| vxlan::mac(&self.inputs.node));
        let link = Link {
            kind,
            mac,
            mtu: self.mtu,
            up: true,
        };
        // Two modes can use the same tunnel, and differ in the pools, or in the MTU.
        let known = desired.kernel.links.get(&self.name);
        let mtu = known.map_or(self.mtu, |known| known.mtu.min(self.mtu));
        if !self.sources.own.is_empty() {
            desired.spare.remove(&self.name);
        } else if known.is_none() {
            desired.spare.insert(self.name.clone());
        }
        let link = Link { mtu, ..link };
        desired.kernel.links.insert(self.name.clone(), link);
        // On the tunnel even if a bridge has it too: what kube-proxy masquerades on the way into the tunnel takes an address of
        // the tunnel's link, or any other of the node's if that has none (`inet_select_addr`).
        for address in self.sources.all() {
            let key = AddressKey {
                link: self.name.clone(),
                net: IpNet::from(address),
            };
            desired.kernel.addresses.insert(key, Address::default());
        }
        self.settings(desired);
    }

    /// Add what leads to a block, and give the route into the tunnel; `None` while the tunnel's link is not there.
    ///
    /// # Errors
    /// Why there is none.
    pub fn route_to(
        &self,
        block: &RemoteBlock,
        desired: &mut Desired,
    ) -> Result<Option<(RouteKey, Route)>, Unreachable> {
        let family = IpFamily::of(block.cidr.addr());
        let Some(remote) = block.addresses.of(self.mode.outer_family) else {
            return Err(Unreachable::NoTunnelEndpoint {
                block: block.cidr,
                peer: block.node.clone(),
                family: self.mode.outer_family,
                mode: self.mode.name.clone(),
            });
        };
        if self.transport == Transport::Ipip
            && (family, IpFamily::of(remote)) != (IpFamily::Ipv4, IpFamily::Ipv4)
        {
            return Err(Unreachable::NotCarriedByIpip {
                block: block.cidr,
                peer: block.node.clone(),
                mode: self.mode.name.clone(),
            });
        }
        let via = match self.transport {
            Transport::Vxlan(_) => {
                vxlan::add_endpoint(&self.name, block, remote, &mut desired.kernel);
                Some(vxlan::next_hop(block))
            }
            Transport::Ipip => Some(remote),
            Transport::Udp(_) => {
                udp::add_block(&self.name, block.cidr, remote, &mut desired.udp);
                None
            }
            Transport::Direct | Transport::Bgp => return Ok(None),
        };
        let there = desired.kernel.links.contains_key(&self.name);
        let source = self.sources.of(&block.pool, family);
        Ok(there.then(|| self.route(block, via, source)))
    }

    fn link_kind(&self) -> Option<LinkKind> {
        match (self.transport, self.local) {
            (Transport::Vxlan(parameters), local) => Some(vxlan::link_kind(parameters, local)),
            (Transport::Ipip, IpAddr::V4(local)) => Some(LinkKind::Ipip { local }),
            (Transport::Udp(_), _) => Some(LinkKind::Tun),
            (Transport::Ipip, IpAddr::V6(_)) | (Transport::Direct | Transport::Bgp, _) => None,
        }
    }

    /// A next hop needs `onlink`: a tunnel has no neighbor discovery.
    fn route(
        &self,
        block: &RemoteBlock,
        via: Option<IpAddr>,
        source: Option<IpAddr>,
    ) -> (RouteKey, Route) {
        let (key, mut route) = unicast(block.cidr, via, self.name.clone(), source);
        route.onlink = via.is_some();
        (key, route)
    }

    /// Link-wide settings.
    fn settings(&self, desired: &mut Desired) {
        let name = &self.name;
        // Replies to packets of the node may come in by another path while a mode changes; the kernel takes the larger
        // of `all` and the link's own value, and 2 is loose (RFC 3704).
        let sysctls = &mut desired.sysctls;
        sysctls.insert(sysctl::rp_filter(name.as_str()), "2".to_owned());
    }
}

/// The addresses that the node itself sends from into a tunnel.
struct Sources<'a> {
    /// Of the pools that the tunnel carries.
    own: BTreeMap<&'a str, IpAddr>,
    /// Of other pools, one for each family that has none of its own here: a node without a block of the tunnel's pools still
    /// answers and asks, and what comes back must find a tunnel.
    borrowed: Vec<IpAddr>,
}

impl<'a> Sources<'a> {
    fn new(inputs: &'a Inputs, mode: &NodeMode, mtu: u32) -> Self {
        let all = tunnel_addresses(inputs);
        let (own, others): (BTreeMap<_, _>, BTreeMap<_, _>) = all
            .into_iter()
            .partition(|(pool, _)| carries(inputs, mode, pool, mtu));
        let encapsulated = |pool: &str| {
            let transport = inputs.mode_of(pool).and_then(|mode| mode.transport.get());
            matches!(
                transport,
                Some(Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_))
            )
        };
        let borrow = |ipv4: bool| {
            if own
                .values()
                .any(|address: &IpAddr| address.is_ipv4() == ipv4)
            {
                return None;
            }
            let usable = others.iter().filter(|(_, address)| {
                address.is_ipv4() == ipv4 && fits(IpNet::from(**address), mtu)
            });
            // Replies to an address of an encapsulated pool come back encapsulated.
            let best = usable.min_by_key(|(pool, _)| !encapsulated(pool));
            best.map(|(_, address)| *address)
        };
        let borrowed = [true, false].into_iter().filter_map(borrow).collect();
        Self { own, borrowed }
    }

    fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.own.values().chain(&self.borrowed).copied()
    }

    /// The one for packets to a pool: of the pool itself, else of another that the tunnel carries, else a borrowed one.
    fn of(&self, pool: &str, family: IpFamily) -> Option<IpAddr> {
        let own = self.own.get(pool).copied();
        own.or_else(|| self.all().find(|address| IpFamily::of(*address) == family))
    }
}
