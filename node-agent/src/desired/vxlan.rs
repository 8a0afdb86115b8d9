//! The VXLAN way between nodes: one link per VNI, and for each remote block three entries that never age.
//!
//! ```text
//!   route      10.244.1.0/26 via 10.244.1.0 dev nw-vx4096 onlink src <own tunnel address>
//!   neighbour  10.244.1.0 dev nw-vx4096 lladdr <the other node's endpoint> PERMANENT
//!   fdb        <the other node's endpoint> dev nw-vx4096 dst <the other node's address>
//! ```
//!
//! The route finds the next hop, the neighbour its Ethernet address, the forwarding entry the node that has it. The
//! next hop is the block's own first address, which no pod ever has: it follows from the block alone. The endpoint's
//! Ethernet address follows from the node's name. So a joining node costs its peers one small object and no exchange.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_crds::{IpFamily, NodeMode, VxlanParameters, names};
use netweft_netstate::model::{
    Address, AddressKey, FdbKey, Link, LinkKind, LinkName, Mac, Neighbour, NeighbourKey,
    NetworkState, Route, RouteKey, RouteKind, TABLE_MAIN, Vxlan,
};
use netweft_netstate::owner::{METRIC, PROTOCOL_AGENT};

use super::tunnel_address::tunnel_addresses;
use super::{fits, pod_mtu};
use crate::facts::Facts;
use crate::inputs::{Inputs, RemoteBlock};

/// One VXLAN tunnel of one mode.
pub struct Tunnel<'a> {
    pub inputs: &'a Inputs,
    pub facts: &'a Facts,
    pub mode: &'a NodeMode,
    pub parameters: VxlanParameters,
}

impl Tunnel<'_> {
    /// Add the link and all that belongs on it.
    pub fn add_to(
        &self,
        kernel: &mut NetworkState,
        sysctls: &mut BTreeMap<String, String>,
        problems: &mut Vec<String>,
    ) {
        let (Some(name), Some(local), Some(mtu)) = (self.link_name(), self.local(), self.mtu())
        else {
            problems.push(format!(
                "NetworkMode {} is left out: this node has no address for its tunnel",
                self.mode.name
            ));
            return;
        };
        kernel.links.insert(name.clone(), self.link(local, mtu));
        self.settings(&name, sysctls);
        problems.extend(self.too_small(mtu));
        let sources = tunnel_addresses(self.inputs);
        for (pool, address) in &sources {
            // On the tunnel even if a bridge has it too: what kube-proxy masquerades on the way into the tunnel takes an
            // address of the tunnel's link, or any other of the node's if that has none (`inet_select_addr`).
            if self.carries(pool) {
                let key = AddressKey {
                    link: name.clone(),
                    net: IpNet::from(*address),
                };
                kernel.addresses.insert(key, Address::default());
            }
        }
        let carried = |block: &&RemoteBlock| self.carries(&block.pool);
        for block in self.inputs.remote.iter().filter(carried) {
            let Some(remote) = block.addresses.of(self.mode.outer_family) else {
                problems.push(format!(
                    "block {} of node {} is left out: that node has no {} address for the tunnels of NetworkMode {}",
                    block.cidr, block.node, self.mode.outer_family, self.mode.name
                ));
                continue;
            };
            kernel.fdb.insert(fdb_key(&name, block), remote);
            let source = sources.get(block.pool.as_str()).copied();
            let source = source.or_else(|| self.any_source(&sources, block));
            add_block(&name, block, source, kernel);
        }
    }

    fn link(&self, local: IpAddr, mtu: u32) -> Link {
        let VxlanParameters { vni, port } = self.parameters;
        Link {
            kind: LinkKind::Vxlan(Vxlan {
                vni,
                port,
                local: Some(local),
                learning: false,
            }),
            mac: Some(Mac(names::vtep_mac(&self.inputs.node))),
            mtu,
            up: true,
        }
    }

    /// `nw-vx` and the VNI, at most 13 bytes.
    fn link_name(&self) -> Option<LinkName> {
        format!("nw-vx{}", self.parameters.vni).parse().ok()
    }

    fn local(&self) -> Option<IpAddr> {
        self.inputs.local(self.mode)
    }

    fn mtu(&self) -> Option<u32> {
        pod_mtu(self.inputs, self.facts, self.mode)
    }

    fn carries(&self, pool: &str) -> bool {
        let ours = self.inputs.mode_of(pool);
        ours.is_some_and(|mode| mode.name == self.mode.name) && self.fits(pool)
    }

    fn fits(&self, pool: &str) -> bool {
        let (pool, mtu) = (self.inputs.pools.get(pool), self.mtu());
        pool.zip(mtu)
            .is_some_and(|(pool, mtu)| fits(pool.cidr, mtu))
    }

    fn too_small(&self, mtu: u32) -> Option<String> {
        let known = |pool: &&String| self.inputs.pools.contains_key(*pool);
        let pools = self.mode.pools.iter().filter(known);
        let left_out: Vec<&str> = pools
            .map(String::as_str)
            .filter(|pool| !self.fits(pool))
            .collect();
        (!left_out.is_empty()).then(|| {
            format!(
                "IPPool {} is left out: IPv6 needs packets of 1280 bytes and NetworkMode {} has room for {mtu}; raise the MTU of the node's link or spec.mtu",
                left_out.join(", "),
                self.mode.name
            )
        })
    }

    /// Link-wide settings.
    fn settings(&self, name: &LinkName, sysctls: &mut BTreeMap<String, String>) {
        // Answers to what the node sends may come in by another path while a mode changes; the kernel takes the larger
        // of `all` and the link's own value, and 2 is loose (RFC 3704).
        sysctls.insert(format!("ipv4/conf/{name}/rp_filter"), "2".to_owned());
        if self.inputs.carries(IpFamily::Ipv6) {
            sysctls.insert(format!("ipv6/conf/{name}/accept_ra"), "0".to_owned());
        }
    }

    /// A node without a block in the block's pool sends from another pool's tunnel address of this mode.
    fn any_source(&self, sources: &BTreeMap<&str, IpAddr>, block: &RemoteBlock) -> Option<IpAddr> {
        let ipv4 = block.cidr.network().is_ipv4();
        let usable =
            |(pool, address): &(&&str, &IpAddr)| self.carries(pool) && address.is_ipv4() == ipv4;
        sources.iter().find(usable).map(|(_, address)| *address)
    }
}

/// The route to a block and the neighbour that is its next hop.
fn add_block(
    link: &LinkName,
    block: &RemoteBlock,
    source: Option<IpAddr>,
    kernel: &mut NetworkState,
) {
    let via = block.cidr.network();
    let route = Route {
        kind: RouteKind::Unicast,
        protocol: PROTOCOL_AGENT,
        via: Some(via),
        dev: Some(link.clone()),
        onlink: true,
        source,
        mtu: None,
    };
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: block.cidr,
        metric: METRIC,
    };
    kernel.routes.insert(key, route);
    let neighbour = Neighbour {
        mac: Some(fdb_key(link, block).mac),
        permanent: true,
    };
    kernel.neighbours.insert(
        NeighbourKey {
            link: link.clone(),
            ip: via,
        },
        neighbour,
    );
}

fn fdb_key(link: &LinkName, block: &RemoteBlock) -> FdbKey {
    FdbKey {
        link: link.clone(),
        mac: Mac(names::vtep_mac(&block.node)),
    }
}
