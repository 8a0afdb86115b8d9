//! Which address a pod gets. Pure: what is taken is told, what is chosen is for others to write down.
//!
//! Within a block the search begins after the address handed out last and goes round, so that a freed address rests as
//! long as the block allows: connections and neighbour entries of its last pod get time to end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::node::{NodeConfig, PoolConfig};

/// An address and the pool it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The address.
    pub ip: IpAddr,
    /// Its block.
    pub block: IpNet,
    /// Its pool.
    pub pool: &'a PoolConfig,
}

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// The namespace is so new that the agent has not heard of it, or the runtime gave none.
    #[error(
        "pools are chosen by namespace, and netweft-agent on this node does not know {}",
        .0.as_ref().map_or("the pod's, for the runtime gives no K8S_POD_NAMESPACE".to_owned(), |name| format!("namespace {name} yet"))
    )]
    UnknownNamespace(Option<String>),
    /// No pool on this node is for this pod.
    #[error("no pool on this node gives addresses to pods of namespace {0:?}")]
    NoPool(String),
    /// Every address of a family is taken.
    #[error("no free address in {0}")]
    NoAddress(String),
}

/// Chooses one address of each family that this node has for pods of `namespace`: both or none in dual stack. Pools are
/// tried in order, as are their blocks. `last` is the address handed out last, by block.
///
/// # Errors
/// [`Exhausted`] if a family has no free address, or there is no family at all.
pub fn choose<'a>(
    node: &'a NodeConfig,
    namespace: Option<&str>,
    taken: &BTreeSet<IpAddr>,
    last: &BTreeMap<IpNet, IpAddr>,
) -> Result<Vec<Choice<'a>>, Exhausted> {
    let known = |names: &BTreeSet<String>| namespace.is_some_and(|name| names.contains(name));
    if !node.namespaces.as_ref().is_none_or(known) {
        return Err(Exhausted::UnknownNamespace(namespace.map(str::to_owned)));
    }
    let mut choices = Vec::new();
    for ipv4 in [true, false] {
        let pools = pools_for(node, namespace, ipv4);
        if pools.is_empty() {
            continue;
        }
        let free = |pool: &&'a PoolConfig| {
            let pool = *pool;
            let blocks = pool.blocks.iter();
            let mut blocks = blocks.filter(|block| block.addr().is_ipv4() == ipv4);
            blocks.find_map(|block| {
                let mut candidates = candidates(*block, &pool.reserved, last.get(block).copied());
                let ip = candidates.find(|ip| !taken.contains(ip))?;
                Some(Choice {
                    ip,
                    block: *block,
                    pool,
                })
            })
        };
        let open = pools.iter().filter(|pool| !pool.disabled);
        match open.into_iter().find_map(free) {
            Some(choice) => choices.push(choice),
            None => return Err(Exhausted::NoAddress(words(&pools))),
        }
    }
    if choices.is_empty() {
        Err(Exhausted::NoPool(namespace.unwrap_or_default().to_owned()))
    } else {
        Ok(choices)
    }
}

/// The pools of a family that pods of `namespace` get addresses from. Those that are for this namespace stand before those for
/// all: if there is one, also one that is full or disabled, no other comes into question. A pod that belongs on one network must
/// not find itself on another.
#[must_use]
pub fn pools_for<'a>(
    node: &'a NodeConfig,
    namespace: Option<&str>,
    ipv4: bool,
) -> Vec<&'a PoolConfig> {
    let of_family = || {
        let pools = node.pools.iter();
        pools.filter(move |pool| pool.is_of(ipv4))
    };
    let chosen = |pool: &&PoolConfig| {
        let names = pool.namespaces.as_ref();
        names.is_some_and(|names| namespace.is_some_and(|name| names.contains(name)))
    };
    let for_it: Vec<_> = of_family().filter(chosen).collect();
    if !for_it.is_empty() {
        return for_it;
    }
    let for_all = of_family().filter(|pool| pool.namespaces.is_none());
    for_all.filter(|pool| !pool.disabled).collect()
}

fn words(pools: &[&PoolConfig]) -> String {
    let of_pool = |pool: &&PoolConfig| {
        let PoolConfig { name, blocks, .. } = pool;
        let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
        if pool.disabled {
            format!("pool {name} (it is disabled)")
        } else if blocks.is_empty() {
            format!("pool {name} (this node has no block of it)")
        } else {
            format!("pool {name} ({})", blocks.join(", "))
        }
    };
    pools.iter().map(of_pool).collect::<Vec<_>>().join(", ")
}

/// The addresses of a block that a pod can have.
pub fn usable(block: IpNet, reserved: &[IpNet]) -> impl Iterator<Item = IpAddr> {
    candidates(block, reserved, None)
}

/// The usable addresses of a block, round from the one after `last`.
///
/// Never the first, which is the block's own name: tunnels use it as a next hop, and IPv6 as the subnet-router anycast
/// address. In IPv4 never the last either, which other systems take for a broadcast.
fn candidates(
    block: IpNet,
    reserved: &[IpNet],
    last: Option<IpAddr>,
) -> impl Iterator<Item = IpAddr> {
    let first = number(block.network()) + 1;
    let end = number(block.broadcast()).saturating_add(u128::from(block.addr().is_ipv6()));
    let start = last
        .filter(|last| block.contains(last))
        .map_or(first, |last| number(last) + 1)
        .clamp(first, end.max(first));
    let back = move |number| {
        if block.addr().is_ipv4() {
            ipv4(number)
        } else {
            Some(IpAddr::V6(number.into()))
        }
    };
    let free = move |ip: &IpAddr| !reserved.iter().any(|net| net.contains(ip));
    (start..end)
        .chain(first..start.min(end))
        .filter_map(back)
        .filter(free)
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn ipv4(number: u128) -> Option<IpAddr> {
    u32::try_from(number)
        .ok()
        .map(|number| IpAddr::V4(number.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{PodInterface, VERSION};

    fn pool(name: &str, blocks: &[&str]) -> PoolConfig {
        PoolConfig {
            name: name.to_owned(),
            cidr: None,
            pod_interface: PodInterface::Routed,
            bridge: None,
            mtu: 1350,
            blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
            reserved: vec!["10.0.0.1/32".parse().unwrap()],
            namespaces: None,
            disabled: false,
        }
    }

    fn node(pools: Vec<PoolConfig>) -> NodeConfig {
        NodeConfig {
            version: VERSION,
            pools,
            withdrawn: vec![],
            namespaces: None,
        }
    }

    /// Takes addresses until there are none.
    fn drain(node: &NodeConfig) -> Vec<String> {
        let (mut taken, mut last, mut order) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
        while let Ok(choices) = choose(node, Some("default"), &taken, &last) {
            for choice in choices {
                assert!(taken.insert(choice.ip), "{} twice", choice.ip);
                last.insert(choice.block, choice.ip);
                order.push(choice.ip.to_string());
            }
        }
        order
    }

    #[test]
    fn a_block_gives_all_but_its_ends_and_the_reserved() {
        let expected: Vec<String> = (2..7).map(|n| format!("10.0.0.{n}")).collect();
        assert_eq!(drain(&node(vec![pool("a", &["10.0.0.0/29"])])), expected);
        let expected: Vec<String> = (1..8).map(|n| format!("fd00::{n}")).collect();
        assert_eq!(drain(&node(vec![pool("a", &["fd00::/125"])])), expected);
        for tiny in [
            "10.0.0.8/31",
            "10.0.0.8/32",
            "fd00::8/128",
            "255.255.255.255/32",
        ] {
            assert_eq!(
                drain(&node(vec![pool("a", &[tiny])])),
                Vec::<String>::new(),
                "{tiny}"
            );
        }
        assert_eq!(
            drain(&node(vec![pool("a", &["255.255.255.252/30"])])),
            ["255.255.255.253", "255.255.255.254"]
        );
    }

    #[test]
    fn a_freed_address_is_the_last_to_come_back() {
        let node = node(vec![pool("a", &["10.0.0.0/29"])]);
        let block = "10.0.0.0/29".parse().unwrap();
        let mut last = BTreeMap::new();
        let mut order = Vec::new();
        for _ in 0..6 {
            let ip = choose(&node, None, &BTreeSet::new(), &last).unwrap()[0].ip;
            last.insert(block, ip);
            order.push(ip.to_string());
        }
        assert_eq!(
            order,
            [
                "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"
            ]
        );
    }

    #[test]
    fn later_blocks_and_pools_follow_when_the_first_are_full() {
        let pools = vec![
            pool("a", &["10.0.0.0/30", "10.0.1.0/30"]),
            pool("b", &["10.0.2.0/30"]),
        ];
        assert_eq!(
            drain(&node(pools)),
            ["10.0.0.2", "10.0.1.1", "10.0.1.2", "10.0.2.1", "10.0.2.2"]
        );
    }

    #[test]
    fn dual_stack_is_both_or_nothing() {
        let order = drain(&node(vec![
            pool("four", &["10.0.0.0/29"]),
            pool("six", &["fd00::/126"]),
        ]));
        assert_eq!(
            order,
            [
                "10.0.0.2", "fd00::1", "10.0.0.3", "fd00::2", "10.0.0.4", "fd00::3"
            ]
        );
    }

    #[test]
    fn pools_for_other_namespaces_and_disabled_pools_give_nothing() {
        let only = PoolConfig {
            namespaces: Some(["web".to_owned()].into()),
            ..pool("a", &["10.0.0.0/29"])
        };
        let disabled = PoolConfig {
            disabled: true,
            ..pool("b", &["10.0.1.0/29"])
        };
        let node = node(vec![only.clone(), disabled.clone()]);
        let choose = |namespace| choose(&node, namespace, &BTreeSet::new(), &BTreeMap::new());
        assert_eq!(choose(Some("web")).unwrap()[0].pool.name, "a");
        assert_eq!(choose(None), Err(Exhausted::NoPool(String::new())));
        let said = choose(Some("db")).unwrap_err().to_string();
        assert_eq!(
            said,
            "no pool on this node gives addresses to pods of namespace \"db\""
        );
    }

    fn first_pool<'a>(node: &'a NodeConfig, namespace: &str) -> Result<&'a str, String> {
        let choices = choose(node, Some(namespace), &BTreeSet::new(), &BTreeMap::new());
        let choices = choices.map_err(|error| error.to_string())?;
        Ok(choices[0].pool.name.as_str())
    }

    #[test]
    fn a_pool_for_a_namespace_stands_before_those_for_all_also_when_it_has_nothing_to_give() {
        let web = PoolConfig {
            namespaces: Some(["web".to_owned()].into()),
            cidr: "10.0.1.0/24".parse().ok(),
            ..pool("web", &["10.0.1.0/29"])
        };
        let everybody = pool("a", &["10.0.0.0/29"]);
        let with = |web: PoolConfig| node(vec![everybody.clone(), web]);
        let open = with(web.clone());
        assert_eq!(first_pool(&open, "web"), Ok("web"));
        assert_eq!(first_pool(&open, "db"), Ok("a"));
        let empty = with(PoolConfig {
            blocks: vec![],
            ..web.clone()
        });
        let said = first_pool(&empty, "web").unwrap_err();
        assert_eq!(
            said,
            "no free address in pool web (this node has no block of it)"
        );
        assert_eq!(first_pool(&empty, "db"), Ok("a"));
        let disabled = with(PoolConfig {
            disabled: true,
            ..web
        });
        let said = first_pool(&disabled, "web").unwrap_err();
        assert_eq!(said, "no free address in pool web (it is disabled)");
    }

    #[test]
    fn a_namespace_that_nobody_has_told_of_waits() {
        let node = NodeConfig {
            namespaces: Some(["db".to_owned()].into()),
            ..node(vec![pool("a", &["10.0.0.0/29"])])
        };
        assert_eq!(first_pool(&node, "db"), Ok("a"));
        let said = first_pool(&node, "new").unwrap_err();
        assert!(said.ends_with("does not know namespace new yet"), "{said}");
        let nameless = choose(&node, None, &BTreeSet::new(), &BTreeMap::new()).unwrap_err();
        assert!(
            nameless.to_string().ends_with("K8S_POD_NAMESPACE"),
            "{nameless}"
        );
    }

    #[test]
    fn an_exhausted_family_is_named() {
        let taken = ["10.0.0.2".parse().unwrap()].into();
        let node = node(vec![pool("a", &["10.0.0.0/30"])]);
        let said = choose(&node, None, &taken, &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert_eq!(said, "no free address in pool a (10.0.0.0/30)");
    }
}
