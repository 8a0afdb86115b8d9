//! The tunnel of a mode on this node: the link, its addresses, and the routes into it. Each kind of tunnel has a file for its
//! differences.
//!
//! ```text
//!   vxlan   10.244.1.0/26 via 10.244.1.0 dev nw-vx4096 onlink src <own>    with neighbour and FDB entry (`vxlan`)
//!   ipip    10.244.1.0/26 via 192.0.2.2 dev nw-ipip onlink src <own>       the next hop is the other node
//!   udp     10.244.1.0/26 dev nw-udp8285 src <own>                         the relay has the other node in `udp.json`
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_common::link_names;
use netweft_crds::{IpFamily, NodeMode, Transport};
use netweft_netstate::model::{Address, AddressKey, Link, LinkKind, LinkName, Route, RouteKey};

use crate::apply::sysctl;
use crate::desired::mtu::is_sufficient;
use crate::desired::tunnel_address::tunnel_addresses;
use crate::desired::unreachable::Unreachable;
use crate::desired::{Desired, carries, udp, unicast, vxlan};
use crate::inputs::host_facts::HostFacts;
use crate::inputs::{Inputs, RemoteBlock};

/// The tunnel of one mode.
pub struct Tunnel<'a> {
    inputs: &'a Inputs,
    facts: &'a HostFacts,
    mode: &'a NodeMode,
    transport: Transport,
    name: LinkName,
    local: IpAddr,
    mtu: u32,
    sources: Sources<'a>,
}

impl<'a> Tunnel<'a> {
    /// The tunnel of `mode`, whose transport is `transport`; `None` if the transport has no tunnel, or the node has no address of the
    /// outer family.
    pub fn new(
        inputs: &'a Inputs,
        facts: &'a HostFacts,
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
            local: inputs.tunnel_endpoint(mode)?,
            mtu,
            sources: Sources::new(inputs, mode, mtu),
        })
    }

    /// Adds the link with its addresses and sysctls.
    pub fn add_to(&self, desired: &mut Desired) {
        if let Transport::Udp(parameters) = self.transport {
            udp::add_tunnel(&self.name, parameters, self.local, &mut desired.relay);
            // The relay creates the link after it has read its configuration.
            let is_open = self.facts.tun_links.get(&self.name);
            desired
                .problems
                .extend(udp::relay_problem(&self.name, is_open));
            if is_open.is_none() {
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
        // Two modes can have the same tunnel with different pools or a different MTU.
        let existing = desired.kernel.links.get(&self.name);
        let mtu = existing.map_or(self.mtu, |existing| existing.mtu.min(self.mtu));
        if !self.sources.own.is_empty() {
            desired.transmit_only_links.remove(&self.name);
        } else if existing.is_none() {
            desired.transmit_only_links.insert(self.name.clone());
        }
        let link = Link { mtu, ..link };
        desired.kernel.links.insert(self.name.clone(), link);
        // The tunnel has the address even if a bridge has it, too: packets that kube-proxy masquerades on their way into the tunnel
        // get an address of the tunnel's link, or of another link if it has none (`inet_select_addr`).
        for address in self.sources.all() {
            let key = AddressKey {
                link: self.name.clone(),
                net: IpNet::from(address),
            };
            desired.kernel.addresses.insert(key, Address::default());
        }
        self.add_sysctls(desired);
    }

    /// Adds the entries that the route to a block needs, and returns the route; `None` while the link of the tunnel does not exist.
    ///
    /// # Errors
    /// Why the block is unreachable.
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
                udp::add_block(&self.name, block.cidr, remote, &mut desired.relay);
                None
            }
            Transport::Direct | Transport::Bgp => return Ok(None),
        };
        let exists = desired.kernel.links.contains_key(&self.name);
        let source = self.sources.of(&block.pool, family);
        Ok(exists.then(|| self.route(block, via, source)))
    }

    fn link_kind(&self) -> Option<LinkKind> {
        match (self.transport, self.local) {
            (Transport::Vxlan(parameters), local) => Some(vxlan::link_kind(parameters, local)),
            (Transport::Ipip, IpAddr::V4(local)) => Some(LinkKind::Ipip { local }),
            (Transport::Udp(_), _) => Some(LinkKind::Tun),
            (Transport::Ipip, IpAddr::V6(_)) | (Transport::Direct | Transport::Bgp, _) => None,
        }
    }

    /// The route to a block. A next hop needs `onlink`, because a tunnel has no connected prefix.
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

    fn add_sysctls(&self, desired: &mut Desired) {
        let name = &self.name;
        // While a mode changes, replies to packets of the node may arrive by another path. The kernel uses the larger value of
        // `all` and the link; 2 is loose (RFC 3704).
        let sysctls = &mut desired.sysctls;
        sysctls.insert(sysctl::rp_filter(name.as_str()), "2".to_owned());
    }
}

/// The source addresses of packets that the node sends into a tunnel.
struct Sources<'a> {
    /// The tunnel addresses of the pools of the tunnel.
    own: BTreeMap<&'a str, IpAddr>,
    /// Tunnel addresses of other pools, one for each family without an own one: a node without a block of the tunnel's pools
    /// sends into the tunnel, too, and the replies must return by a tunnel.
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
                address.is_ipv4() == ipv4 && is_sufficient(IpNet::from(**address), mtu)
            });
            // Replies to an address of an encapsulated pool return encapsulated.
            let best = usable.min_by_key(|(pool, _)| !encapsulated(pool));
            best.map(|(_, address)| *address)
        };
        let borrowed = [true, false].into_iter().filter_map(borrow).collect();
        Self { own, borrowed }
    }

    fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.own.values().chain(&self.borrowed).copied()
    }

    /// The source of packets to a pool: the address of the pool, else of another pool of the tunnel, else a borrowed one.
    fn of(&self, pool: &str, family: IpFamily) -> Option<IpAddr> {
        let own = self.own.get(pool).copied();
        own.or_else(|| self.all().find(|address| IpFamily::of(*address) == family))
    }
}
