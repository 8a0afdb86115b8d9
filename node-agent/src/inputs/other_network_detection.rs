//! Detection of another pod network on a node that netweft has never served. The agent changes nothing there, because running pods
//! would lose their network.
//!
//! After netweft has served the node the detection ends: a later route or file must not disconnect pods of netweft.

use std::collections::BTreeSet;
use std::path::Path;

use ipnet::IpNet;
use netweft_cni::attachment::Store;
use netweft_cni::conf::CONFLIST_FILE;
use netweft_cni::node;
use netweft_crds::{IPPool, OtherNetwork};
use netweft_netstate::model::NetworkState;
use netweft_netstate::owner::{PROTOCOL_AGENT, PROTOCOL_PLUGIN, is_netweft_link};

use crate::apply::cni_config;
use crate::commands::args::Paths;
use crate::status::cause::Cause;

/// Maximum number of ranges in a report.
const MAX_REPORTED: usize = 16;

/// Route protocols of routing daemons, which add routes to pods of netweft from BGP and other routing protocols
/// (include/uapi/linux/rtnetlink.h: zebra, bird, bgp, isis, ospf, rip, eigrp, openr, babel).
const ROUTING_DAEMONS: [u8; 9] = [11, 12, 42, 99, 186, 187, 188, 189, 192];

/// Traces of other pod networks on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherNetworks {
    /// Path of the CNI configuration that the runtime uses instead of netweft's.
    pub configuration: Option<String>,
    /// Ranges inside IPPools with foreign routes or addresses.
    pub ranges: Vec<OtherNetwork>,
}

impl OtherNetworks {
    /// Why the agent programs nothing; `None` without another network.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        if let Some(file) = &self.configuration {
            let file = file.clone();
            return Some(Cause::OtherNetworkConfiguration { file });
        }
        let first = self.ranges.first()?;
        Some(Cause::OtherNetworkRange {
            pool: first.pool.clone(),
            cidr: first.cidr,
            interface: first.interface.clone(),
            more: self.ranges.len() - 1,
        })
    }
}

/// Whether netweft has served pods of this node before, in this boot or an earlier one.
#[must_use]
pub fn has_served(paths: &Paths) -> bool {
    let records = || Store::new(&paths.run_dir).list();
    paths.cni_conf_dir.join(CONFLIST_FILE).exists()
        || paths.run_dir.join(node::FILE).exists()
        // An unreadable directory may contain records.
        || records().map_or(true, |records| !records.is_empty())
}

/// Detects other networks in the kernel and among the configurations of the runtime.
#[must_use]
pub fn detect(actual: &NetworkState, pools: &[IPPool], cni_conf_dir: &Path) -> OtherNetworks {
    let mut configurations = cni_config::preceding(cni_conf_dir).into_iter();
    OtherNetworks {
        configuration: configurations
            .next()
            .map(|file| cni_conf_dir.join(file).display().to_string()),
        ranges: ranges(actual, pools),
    }
}

/// Foreign routes and addresses inside the ranges of pools. A wider route, for example to a company network, does not indicate pods.
fn ranges(actual: &NetworkState, pools: &[IPPool]) -> Vec<OtherNetwork> {
    let routes = actual.routes.iter().filter(|(_, route)| {
        ![PROTOCOL_AGENT, PROTOCOL_PLUGIN].contains(&route.protocol)
            && !ROUTING_DAEMONS.contains(&route.protocol)
    });
    let routes = routes.map(|(key, route)| (key.dst, route.dev.clone()));
    let addresses = actual.addresses.keys();
    let addresses = addresses.map(|key| (key.net.trunc(), Some(key.link.clone())));
    let all = routes.chain(addresses);
    let foreign = all.filter(|(_, link)| link.as_ref().is_none_or(|link| !is_netweft_link(link)));
    let pool_of = |cidr: &IpNet| {
        let mut pools = pools.iter().filter(|pool| pool.spec.cidr.contains(cidr));
        pools.next().and_then(|pool| pool.metadata.name.clone())
    };
    let found: BTreeSet<(IpNet, String, Option<String>)> = foreign
        .filter_map(|(cidr, link)| {
            let interface = link.map(|link| link.to_string());
            Some((cidr, pool_of(&cidr)?, interface))
        })
        .collect();
    let found = found.into_iter().take(MAX_REPORTED);
    found
        .map(|(cidr, pool, interface)| OtherNetwork {
            cidr,
            pool,
            interface,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use netweft_netstate::model::{Address, AddressKey, Route, RouteKey, RouteKind, TABLE_MAIN};

    use super::*;

    fn pools() -> Vec<IPPool> {
        let pool = |name: &str, cidr: &str| {
            let text = format!(
                "{{apiVersion: netweft.io/v1alpha1, kind: IPPool, metadata: {{name: {name}}}, spec: {{cidr: '{cidr}', networkMode: default}}}}"
            );
            serde_saphyr::from_str(&text).unwrap()
        };
        vec![
            pool("default-v4", "10.244.0.0/16"),
            pool("default-v6", "fd00:10:244::/56"),
        ]
    }

    /// The ranges that one route indicates.
    fn with_route(dst: &str, dev: Option<&str>, protocol: u8) -> Vec<String> {
        let mut state = NetworkState::default();
        let key = RouteKey {
            table: TABLE_MAIN,
            dst: dst.parse().unwrap(),
            metric: 0,
        };
        let route = Route {
            kind: RouteKind::Unicast,
            protocol,
            via: None,
            dev: dev.map(|dev| dev.parse().unwrap()),
            onlink: false,
            source: None,
            mtu: None,
        };
        state.routes.insert(key, route);
        describe(&state)
    }

    fn describe(state: &NetworkState) -> Vec<String> {
        let ranges = ranges(state, &pools()).into_iter();
        let described = ranges.map(|range| {
            let link = range.interface.unwrap_or_default();
            format!("{} {} {link}", range.cidr, range.pool)
        });
        described.collect()
    }

    #[test]
    fn foreign_routes_inside_pool_indicate_other_network() {
        let flannel = with_route("10.244.3.0/24", Some("flannel.1"), 3);
        assert_eq!(flannel, ["10.244.3.0/24 default-v4 flannel.1"]);
        let calico = with_route("10.244.7.64/26", None, 80);
        assert_eq!(calico, ["10.244.7.64/26 default-v4 "]);
        let whole_pool = with_route("fd00:10:244::/56", Some("br0"), 2);
        assert_eq!(whole_pool, ["fd00:10:244::/56 default-v6 br0"]);
    }

    #[test]
    fn unrelated_routes_do_not_indicate_other_network() {
        for (dst, dev, protocol) in [
            ("0.0.0.0/0", Some("eth0"), 3),
            ("10.0.0.0/8", Some("eth0"), 4),
            ("10.245.0.0/24", Some("docker0"), 2),
            ("10.244.3.0/26", Some("eth0"), 186),
            ("10.244.3.0/26", Some("eth0"), 12),
            ("10.244.3.0/26", Some("nw-vx4096"), PROTOCOL_AGENT),
            ("10.244.3.7/32", Some("nw0123456789a"), PROTOCOL_PLUGIN),
        ] {
            assert!(with_route(dst, dev, protocol).is_empty(), "{dst}");
        }
    }

    #[test]
    fn address_on_foreign_bridge_indicates_other_network() {
        let mut state = NetworkState::default();
        for (link, net) in [("cni0", "10.244.1.1/24"), ("nw-br0", "10.244.2.1/26")] {
            let key = AddressKey {
                link: link.parse().unwrap(),
                net: net.parse().unwrap(),
            };
            state.addresses.insert(key, Address::default());
        }
        assert_eq!(describe(&state), ["10.244.1.0/24 default-v4 cni0"]);
    }

    #[test]
    fn other_network_report_is_bounded_and_counts_the_rest() {
        let mut state = NetworkState::default();
        for third in 0..40 {
            let key = AddressKey {
                link: "cni0".parse().unwrap(),
                net: format!("10.244.{third}.1/24").parse().unwrap(),
            };
            state.addresses.insert(key, Address::default());
        }
        let dir = tempfile::tempdir().unwrap();
        let found = detect(&state, &pools(), dir.path());
        assert_eq!(found.ranges.len(), MAX_REPORTED);
        assert_eq!(
            found.cause().unwrap().to_string(),
            "another network uses addresses of IPPool default-v4 on this node (10.244.0.0/24 on link cni0 and 15 more), and netweft changes \
             nothing here: remove the other network, create an IPPool with a range outside and delete default-v4, or set \
             agent.ignoreOtherNetworks to true in the chart's values to run netweft next to it"
        );
        assert_eq!(OtherNetworks::default().cause(), None);
    }
}
