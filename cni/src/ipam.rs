//! Which address a pod gets. Pure: what is taken is told, what is chosen is for others to write down.
//!
//! Within a block the search begins after the address handed out last and goes round, so that a freed address rests as
//! long as the block allows: connections and neighbour entries of its last pod get time to end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::block::candidates;
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
pub enum AllocationError {
    /// The namespace is so new that the agent has not heard of it, or the runtime gave none.
    #[error(
        "pools are chosen by namespace, and netweft-agent on this node does not know {}",
        .0.as_ref().map_or("the pod's, for the runtime gives no K8S_POD_NAMESPACE".to_owned(), |name| format!("namespace {name} yet"))
    )]
    UnknownNamespace(Option<String>),
    /// No pool on this node is for this pod.
    #[error("no pool on this node gives addresses to pods of namespace {0:?}")]
    NoPool(String),
    /// The pod asks for a pool that is not for it.
    #[error(
        "annotation {POOLS_ANNOTATION} asks for IPPool {asked}, which gives no addresses to this pod: {}",
        if allowed.is_empty() { "none on this node does; remove the annotation".to_owned() } else { format!("ask for {}", allowed.join(" or ")) }
    )]
    NotForThisPod {
        /// What it asks for.
        asked: String,
        /// What it could have asked for.
        allowed: Vec<String>,
    },
    /// Every address of a family is taken.
    #[error("no free address in {}", .0.iter().map(Shortage::to_string).collect::<Vec<_>>().join(", and none in "))]
    NoAddress(Vec<Shortage>),
}

/// A family in which there is no address for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The pools that came into question, in words.
    words: String,
    /// Those of them that would give addresses if this node had a block.
    pub without_block: Vec<String>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// The annotation by which a pod asks for pools: names with commas between them, the preferred first.
pub const POOLS_ANNOTATION: &str = "netweft.io/pools";

/// Who wants addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodRequest<'a> {
    /// The pod's namespace, if the runtime told.
    pub namespace: Option<&'a str>,
    /// What the pod says in [`POOLS_ANNOTATION`].
    pub pools: Option<&'a str>,
}

impl<'a> PodRequest<'a> {
    /// The pools that are asked for, the preferred first.
    fn asked(&self) -> Vec<&'a str> {
        let names = self.pools.unwrap_or_default().split(',').map(str::trim);
        names.filter(|name| !name.is_empty()).collect()
    }
}

/// Chooses one address of each family that this node has for a pod: both or none in dual stack. Pools are tried in order, as are
/// their blocks. `last` is the address handed out last, by block.
///
/// # Errors
/// [`AllocationError`] if a family has no free address, or there is no family at all.
pub fn choose<'a>(
    node: &'a NodeConfig,
    pod_request: PodRequest<'_>,
    taken: &BTreeSet<IpAddr>,
    last: &BTreeMap<IpNet, IpAddr>,
) -> Result<Vec<Choice<'a>>, AllocationError> {
    let namespace = pod_request.namespace;
    let known = |names: &BTreeSet<String>| namespace.is_some_and(|name| names.contains(name));
    if !node.namespaces.as_ref().is_none_or(known) {
        return Err(AllocationError::UnknownNamespace(
            namespace.map(str::to_owned),
        ));
    }
    let (mut choices, mut shortages) = (Vec::new(), Vec::new());
    for (ipv4, pools) in candidates_by_family(node, pod_request)? {
        let open = || pools.iter().copied().filter(|pool| !pool.disabled);
        match open().find_map(|pool| free_address(pool, ipv4, taken, last)) {
            Some(choice) => choices.push(choice),
            None => shortages.push(Shortage {
                words: words(&pools),
                without_block: open()
                    .filter(|pool| pool.blocks.is_empty())
                    .map(|pool| pool.name.clone())
                    .collect(),
            }),
        }
    }
    if !shortages.is_empty() {
        Err(AllocationError::NoAddress(shortages))
    } else if choices.is_empty() {
        Err(AllocationError::NoPool(
            namespace.unwrap_or_default().to_owned(),
        ))
    } else {
        Ok(choices)
    }
}

/// The pools that come into question, for each family (IPv4: true) that has any. What the pod asks for takes the place of the others of its
/// family: a choice among those for its namespace, never beyond.
fn candidates_by_family<'a>(
    node: &'a NodeConfig,
    pod_request: PodRequest<'_>,
) -> Result<Vec<(bool, Vec<&'a PoolConfig>)>, AllocationError> {
    let of_family = |ipv4| (ipv4, pools_for(node, pod_request.namespace, ipv4));
    let mut families = vec![of_family(true), of_family(false)];
    let asked = pod_request.asked();
    let named = |pool: &&PoolConfig, name: &str| pool.name == name;
    for name in &asked {
        let mut all = families.iter().flat_map(|(_, pools)| pools);
        if !all.any(|pool| named(pool, name)) {
            return Err(AllocationError::NotForThisPod {
                asked: (*name).to_owned(),
                allowed: families
                    .iter()
                    .flat_map(|(_, pools)| pools)
                    .map(|pool| pool.name.clone())
                    .collect(),
            });
        }
    }
    for (_, pools) in &mut families {
        let wished = asked
            .iter()
            .filter_map(|name| pools.iter().find(|pool| named(pool, name)));
        let wished: Vec<_> = wished.copied().collect();
        if !wished.is_empty() {
            *pools = wished;
        }
    }
    families.retain(|(_, pools)| !pools.is_empty());
    Ok(families)
}

fn free_address<'a>(
    pool: &'a PoolConfig,
    ipv4: bool,
    taken: &BTreeSet<IpAddr>,
    last: &BTreeMap<IpNet, IpAddr>,
) -> Option<Choice<'a>> {
    let blocks = pool.blocks.iter();
    let mut of_family = blocks.filter(|block| block.addr().is_ipv4() == ipv4);
    of_family.find_map(|block| {
        let mut candidates = candidates(*block, &pool.reserved, last.get(block).copied());
        let ip = candidates.find(|ip| !taken.contains(ip))?;
        let block = *block;
        Some(Choice { ip, block, pool })
    })
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
            reserved: vec![],
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

    fn of(namespace: &str) -> PodRequest<'_> {
        PodRequest {
            namespace: Some(namespace),
            pools: None,
        }
    }

    /// Takes addresses until there are none.
    fn drain(node: &NodeConfig) -> Vec<String> {
        let (mut taken, mut last, mut order) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
        while let Ok(choices) = choose(node, of("default"), &taken, &last) {
            for choice in choices {
                assert!(taken.insert(choice.ip), "{} twice", choice.ip);
                last.insert(choice.block, choice.ip);
                order.push(choice.ip.to_string());
            }
        }
        order
    }

    #[test]
    fn block_allocates_all_but_first_last_and_reserved() {
        let expected: Vec<String> = (2..7).map(|n| format!("10.0.0.{n}")).collect();
        assert_eq!(drain(&node(vec![pool("a", &["10.0.0.0/29"])])), expected);
        let expected: Vec<String> = (2..8).map(|n| format!("fd00::{n}")).collect();
        assert_eq!(drain(&node(vec![pool("a", &["fd00::/125"])])), expected);
        for tiny in [
            "10.0.0.8/31",
            "10.0.0.8/32",
            "fd00::8/127",
            "fd00::8/128",
            "255.255.255.255/32",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
        ] {
            assert_eq!(
                drain(&node(vec![pool("a", &[tiny])])),
                Vec::<String>::new(),
                "{tiny}"
            );
        }
        assert_eq!(
            drain(&node(vec![pool("a", &["255.255.255.252/30"])])),
            ["255.255.255.254"]
        );
    }

    #[test]
    fn freed_address_is_reused_last() {
        let node = node(vec![pool("a", &["10.0.0.0/29"])]);
        let block = "10.0.0.0/29".parse().unwrap();
        let mut last = BTreeMap::new();
        let mut order = Vec::new();
        for _ in 0..6 {
            let ip = choose(&node, PodRequest::default(), &BTreeSet::new(), &last).unwrap()[0].ip;
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
    fn full_blocks_and_pools_fall_back_to_later_ones() {
        let pools = vec![
            pool("a", &["10.0.0.0/30", "10.0.1.0/30"]),
            pool("b", &["10.0.2.0/30"]),
        ];
        assert_eq!(drain(&node(pools)), ["10.0.0.2", "10.0.1.2", "10.0.2.2"]);
    }

    #[test]
    fn dual_stack_pool_gives_one_address_per_family() {
        let order = drain(&node(vec![pool("a", &["10.0.0.0/30", "fd00::/126"])]));
        assert_eq!(order, ["10.0.0.2", "fd00::2"]);
    }

    #[test]
    fn dual_stack_allocation_gives_both_families_or_none() {
        let order = drain(&node(vec![
            pool("four", &["10.0.0.0/29"]),
            pool("six", &["fd00::/126"]),
        ]));
        assert_eq!(order, ["10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3"]);
    }

    #[test]
    fn other_namespace_and_disabled_pools_allocate_nothing() {
        let only = PoolConfig {
            namespaces: Some(["web".to_owned()].into()),
            ..pool("a", &["10.0.0.0/29"])
        };
        let disabled = PoolConfig {
            disabled: true,
            ..pool("b", &["10.0.1.0/29"])
        };
        let node = node(vec![only.clone(), disabled.clone()]);
        let choose = |namespace| {
            let pod_request = PodRequest {
                namespace,
                pools: None,
            };
            choose(&node, pod_request, &BTreeSet::new(), &BTreeMap::new())
        };
        assert_eq!(choose(Some("web")).unwrap()[0].pool.name, "a");
        assert_eq!(choose(None), Err(AllocationError::NoPool(String::new())));
        let said = choose(Some("db")).unwrap_err().to_string();
        assert_eq!(
            said,
            "no pool on this node gives addresses to pods of namespace \"db\""
        );
    }

    fn first_pool<'a>(node: &'a NodeConfig, namespace: &str) -> Result<&'a str, AllocationError> {
        let choices = choose(node, of(namespace), &BTreeSet::new(), &BTreeMap::new())?;
        Ok(choices[0].pool.name.as_str())
    }

    #[test]
    fn namespace_pool_without_addresses_keeps_precedence() {
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
        let said = first_pool(&empty, "web").unwrap_err().to_string();
        assert_eq!(
            said,
            "no free address in pool web (this node has no block of it)"
        );
        assert_eq!(first_pool(&empty, "db"), Ok("a"));
        let disabled = with(PoolConfig {
            disabled: true,
            ..web
        });
        let said = first_pool(&disabled, "web").unwrap_err().to_string();
        assert_eq!(said, "no free address in pool web (it is disabled)");
    }

    #[test]
    fn allocation_for_unknown_namespace_is_deferred() {
        let node = NodeConfig {
            namespaces: Some(["db".to_owned()].into()),
            ..node(vec![pool("a", &["10.0.0.0/29"])])
        };
        assert_eq!(first_pool(&node, "db"), Ok("a"));
        let said = first_pool(&node, "new").unwrap_err().to_string();
        assert!(said.ends_with("does not know namespace new yet"), "{said}");
        let nameless = choose(
            &node,
            PodRequest::default(),
            &BTreeSet::new(),
            &BTreeMap::new(),
        )
        .unwrap_err();
        assert!(
            nameless.to_string().ends_with("K8S_POD_NAMESPACE"),
            "{nameless}"
        );
    }

    #[test]
    fn exhausted_pool_is_named_in_error() {
        let taken = ["10.0.0.2".parse().unwrap()].into();
        let node = node(vec![pool("a", &["10.0.0.0/30"])]);
        let said = choose(&node, PodRequest::default(), &taken, &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert_eq!(said, "no free address in pool a (10.0.0.0/30)");
    }

    #[test]
    fn error_lists_enabled_pools_without_block_by_family() {
        let disabled = PoolConfig {
            disabled: true,
            ..pool("off", &[])
        };
        let of = |name: &str, cidr: &str| PoolConfig {
            cidr: cidr.parse().ok(),
            ..pool(name, &[])
        };
        let node = node(vec![
            pool("full", &["10.0.0.0/30"]),
            PoolConfig {
                cidr: "10.9.0.0/16".parse().ok(),
                ..disabled
            },
            of("four", "10.1.0.0/16"),
            of("four-too", "10.2.0.0/16"),
            of("six", "fd00::/112"),
        ]);
        let taken = ["10.0.0.2".parse().unwrap()].into();
        let error = choose(&node, PodRequest::default(), &taken, &BTreeMap::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no free address in pool full (10.0.0.0/30), pool four (this node has no block of it), pool four-too (this node \
             has no block of it), and none in pool six (this node has no block of it)"
        );
        let AllocationError::NoAddress(shortages) = error else {
            panic!("{error}");
        };
        let shortages: Vec<_> = shortages
            .into_iter()
            .map(|lack| lack.without_block)
            .collect();
        assert_eq!(shortages, [vec!["four", "four-too"], vec!["six"]]);
    }

    /// Names of the pools chosen for a pod of namespace `default` that asks for some.
    fn asking(node: &NodeConfig, pools: &str) -> Result<Vec<String>, AllocationError> {
        let pod_request = PodRequest {
            pools: Some(pools),
            ..of("default")
        };
        let choices = choose(node, pod_request, &BTreeSet::new(), &BTreeMap::new())?;
        Ok(choices
            .iter()
            .map(|choice| choice.pool.name.clone())
            .collect())
    }

    #[test]
    fn pool_annotation_excludes_other_pools_of_same_family() {
        let node = node(vec![
            pool("a", &["10.0.0.0/29"]),
            pool("b", &["10.0.1.0/29"]),
            pool("none", &["10.0.2.0/32"]),
            pool("six", &["fd00::/125"]),
            pool("six-too", &["fd00::8/125"]),
        ]);
        let asking = |pools| asking(&node, pools);
        assert_eq!(asking(""), Ok(vec!["a".into(), "six".into()]));
        assert_eq!(asking("b"), Ok(vec!["b".into(), "six".into()]));
        assert_eq!(asking("six-too, b"), Ok(vec!["b".into(), "six-too".into()]));
        assert_eq!(asking("b,a"), Ok(vec!["b".into(), "six".into()]));
        assert_eq!(asking("none,b"), Ok(vec!["b".into(), "six".into()]));
        assert_eq!(
            asking("none").unwrap_err().to_string(),
            "no free address in pool none (10.0.2.0/32)"
        );
    }

    #[test]
    fn pool_annotation_for_other_namespace_is_refused() {
        let for_namespace = |name: &str, namespace: &str, block: &str| PoolConfig {
            namespaces: Some([namespace.to_owned()].into()),
            ..pool(name, &[block])
        };
        let web = for_namespace("web", "web", "10.0.1.0/29");
        let everybody = pool("a", &["10.0.0.0/29"]);
        let refused =
            |pools: Vec<PoolConfig>, asked| asking(&node(pools), asked).unwrap_err().to_string();
        assert_eq!(
            refused(vec![everybody.clone(), web], "a,web"),
            "annotation netweft.io/pools asks for IPPool web, which gives no addresses to this pod: ask for a"
        );
        // Nor leave its own for one that is for all.
        let own = for_namespace("own", "default", "10.0.1.0/29");
        assert_eq!(
            refused(vec![everybody, own], "a"),
            "annotation netweft.io/pools asks for IPPool a, which gives no addresses to this pod: ask for own"
        );
        assert!(refused(vec![], "a").ends_with("none on this node does; remove the annotation"));
    }
}
