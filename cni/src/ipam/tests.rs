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

fn in_namespace(namespace: &str) -> PodRequest<'_> {
    PodRequest {
        namespace: Some(namespace),
        pools: None,
    }
}

/// Allocates addresses until none is free.
fn allocate_all(node: &NodeConfig) -> Vec<String> {
    let (mut allocated, mut cursors, mut order) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
    while let Ok(allocations) = allocate(node, in_namespace("default"), &allocated, &cursors) {
        for allocation in allocations {
            assert!(allocated.insert(allocation.ip), "{} twice", allocation.ip);
            cursors.insert(allocation.block, allocation.ip);
            order.push(allocation.ip.to_string());
        }
    }
    order
}

#[test]
fn block_allocates_all_but_first_last_and_reserved() {
    let expected: Vec<String> = (2..7).map(|n| format!("10.0.0.{n}")).collect();
    assert_eq!(
        allocate_all(&node(vec![pool("a", &["10.0.0.0/29"])])),
        expected
    );
    let expected: Vec<String> = (2..8).map(|n| format!("fd00::{n}")).collect();
    assert_eq!(
        allocate_all(&node(vec![pool("a", &["fd00::/125"])])),
        expected
    );
    for tiny in [
        "10.0.0.8/31",
        "10.0.0.8/32",
        "fd00::8/127",
        "fd00::8/128",
        "255.255.255.255/32",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
    ] {
        assert_eq!(
            allocate_all(&node(vec![pool("a", &[tiny])])),
            Vec::<String>::new(),
            "{tiny}"
        );
    }
    assert_eq!(
        allocate_all(&node(vec![pool("a", &["255.255.255.252/30"])])),
        ["255.255.255.254"]
    );
}

#[test]
fn released_address_is_reused_last() {
    let node = node(vec![pool("a", &["10.0.0.0/29"])]);
    let block = "10.0.0.0/29".parse().unwrap();
    let mut cursors = BTreeMap::new();
    let mut order = Vec::new();
    for _ in 0..6 {
        let request = PodRequest::default();
        let ip = allocate(&node, request, &BTreeSet::new(), &cursors).unwrap()[0].ip;
        cursors.insert(block, ip);
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
    assert_eq!(
        allocate_all(&node(pools)),
        ["10.0.0.2", "10.0.1.2", "10.0.2.2"]
    );
}

#[test]
fn dual_stack_pool_gives_one_address_per_family() {
    let order = allocate_all(&node(vec![pool("a", &["10.0.0.0/30", "fd00::/126"])]));
    assert_eq!(order, ["10.0.0.2", "fd00::2"]);
}

#[test]
fn dual_stack_allocation_gives_both_families_or_none() {
    let order = allocate_all(&node(vec![
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
    let allocate = |namespace| {
        let pod_request = PodRequest {
            namespace,
            pools: None,
        };
        allocate(&node, pod_request, &BTreeSet::new(), &BTreeMap::new())
    };
    assert_eq!(allocate(Some("web")).unwrap()[0].pool.name, "a");
    assert_eq!(allocate(None), Err(AllocationError::NoPool(None)));
    let message = allocate(Some("db")).unwrap_err().to_string();
    assert_eq!(
        message,
        "no IPPool on this node gives addresses to pods of namespace db: add the namespace to the namespaceSelector of \
         an IPPool, add the node to its nodeSelector, or create an IPPool"
    );
}

fn first_pool<'a>(node: &'a NodeConfig, namespace: &str) -> Result<&'a str, AllocationError> {
    let request = in_namespace(namespace);
    let allocations = allocate(node, request, &BTreeSet::new(), &BTreeMap::new())?;
    Ok(allocations[0].pool.name.as_str())
}

#[test]
fn namespace_pool_without_addresses_keeps_precedence() {
    let web = PoolConfig {
        namespaces: Some(["web".to_owned()].into()),
        cidr: "10.0.1.0/24".parse().ok(),
        ..pool("web", &["10.0.1.0/29"])
    };
    let for_all = pool("a", &["10.0.0.0/29"]);
    let with = |web: PoolConfig| node(vec![for_all.clone(), web]);
    let enabled = with(web.clone());
    assert_eq!(first_pool(&enabled, "web"), Ok("web"));
    assert_eq!(first_pool(&enabled, "db"), Ok("a"));
    let empty = with(PoolConfig {
        blocks: vec![],
        ..web.clone()
    });
    let message = first_pool(&empty, "web").unwrap_err().to_string();
    assert!(
        message.starts_with("no free address in IPPool web (no block on this node): "),
        "{message}"
    );
    assert_eq!(first_pool(&empty, "db"), Ok("a"));
    let disabled = with(PoolConfig {
        disabled: true,
        ..web
    });
    let message = first_pool(&disabled, "web").unwrap_err().to_string();
    assert!(
        message.starts_with("no free address in IPPool web (disabled): "),
        "{message}"
    );
}

#[test]
fn allocation_for_unknown_namespace_is_deferred() {
    let node = NodeConfig {
        namespaces: Some(["db".to_owned()].into()),
        ..node(vec![pool("a", &["10.0.0.0/29"])])
    };
    assert_eq!(first_pool(&node, "db"), Ok("a"));
    let unlisted = first_pool(&node, "new").unwrap_err().to_string();
    assert!(
        unlisted.contains("has not listed namespace new in node.json yet"),
        "{unlisted}"
    );
    let absent = allocate(
        &node,
        PodRequest::default(),
        &BTreeSet::new(),
        &BTreeMap::new(),
    )
    .unwrap_err();
    assert!(
        absent.to_string().contains("passes no K8S_POD_NAMESPACE"),
        "{absent}"
    );
}

#[test]
fn exhausted_pool_is_named_in_error() {
    let allocated = ["10.0.0.2".parse().unwrap()].into();
    let node = node(vec![pool("a", &["10.0.0.0/30"])]);
    let request = PodRequest::default();
    let error = allocate(&node, request, &allocated, &BTreeMap::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no free address in IPPool a (block 10.0.0.0/30): a later attempt succeeds when the operator has assigned a \
         block to this node or a pod has ended; if all blocks of an IPPool are in use, add an IPPool"
    );
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
    let allocated = ["10.0.0.2".parse().unwrap()].into();
    let request = PodRequest::default();
    let error = allocate(&node, request, &allocated, &BTreeMap::new()).unwrap_err();
    let expected = "no free address in IPPool full (block 10.0.0.0/30), IPPool four (no block on this node), IPPool \
                    four-too (no block on this node), and none in IPPool six (no block on this node): ";
    assert!(error.to_string().starts_with(expected), "{error}");
    let AllocationError::NoAddress(shortages) = error else {
        panic!("{error}");
    };
    let shortages: Vec<_> = shortages
        .into_iter()
        .map(|shortage| shortage.without_block)
        .collect();
    assert_eq!(shortages, [vec!["four", "four-too"], vec!["six"]]);
}

/// Names of the pools that give addresses to a pod of namespace `default` that requests `pools`.
fn pools_of_requesting_pod(node: &NodeConfig, pools: &str) -> Result<Vec<String>, AllocationError> {
    let pod_request = PodRequest {
        pools: Some(pools),
        ..in_namespace("default")
    };
    let allocations = allocate(node, pod_request, &BTreeSet::new(), &BTreeMap::new())?;
    Ok(allocations
        .iter()
        .map(|allocation| allocation.pool.name.clone())
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
    let pools_for = |request| pools_of_requesting_pod(&node, request);
    assert_eq!(pools_for(""), Ok(vec!["a".into(), "six".into()]));
    assert_eq!(pools_for("b"), Ok(vec!["b".into(), "six".into()]));
    assert_eq!(
        pools_for("six-too, b"),
        Ok(vec!["b".into(), "six-too".into()])
    );
    assert_eq!(pools_for("b,a"), Ok(vec!["b".into(), "six".into()]));
    assert_eq!(pools_for("none,b"), Ok(vec!["b".into(), "six".into()]));
    let full = pools_for("none").unwrap_err().to_string();
    assert!(
        full.starts_with("no free address in IPPool none (block 10.0.2.0/32): "),
        "{full}"
    );
}

#[test]
fn pool_annotation_for_other_namespace_is_refused() {
    let for_namespace = |name: &str, namespace: &str, block: &str| PoolConfig {
        namespaces: Some([namespace.to_owned()].into()),
        ..pool(name, &[block])
    };
    let web = for_namespace("web", "web", "10.0.1.0/29");
    let for_all = pool("a", &["10.0.0.0/29"]);
    let refused = |pools: Vec<PoolConfig>, request| {
        let refused = pools_of_requesting_pod(&node(pools), request).unwrap_err();
        refused.to_string()
    };
    assert_eq!(
        refused(vec![for_all.clone(), web], "a,web"),
        "annotation netweft.io/pools requests IPPool web, which gives no addresses to this pod: request a"
    );
    // A pool for all namespaces is refused too if a pool selects the pod's namespace.
    let own = for_namespace("own", "default", "10.0.1.0/29");
    assert_eq!(
        refused(vec![for_all, own], "a"),
        "annotation netweft.io/pools requests IPPool a, which gives no addresses to this pod: request own"
    );
    assert!(refused(vec![], "a").contains(": remove the annotation, "));
}
