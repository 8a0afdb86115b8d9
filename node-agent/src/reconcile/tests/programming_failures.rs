//! Failures to program links, routes and FDB entries, and their retries.

use crate::reconcile::tests::*;

#[test]
fn netns_conflist_is_written_only_after_datapath_is_complete() {
    in_namespace(async || {
        let mut node = fixture();
        node.kernel()
            .fail_with(|op| matches!(op, Op::LinkAdd { .. }).then_some(Errno::EOPNOTSUPP));
        assert!(node.reconcile().await.is_some());
        assert!(!node.conflist());
        let (ready, message) = node.ready();
        assert_eq!(ready, "False");
        assert!(message.contains("nw-vx4096"), "{message}");
        assert_eq!(node.problems("programming_failed"), 1);
        assert_eq!(
            node.kernel().take_applied().len(),
            1,
            "only the blackhole does not depend on the link"
        );
        node.kernel().clear_fault();
        assert_eq!(node.reconcile().await, None);
        assert!(node.conflist());
        assert_eq!(node.problems("programming_failed"), 0);
    });
}

#[test]
fn netns_unsupported_link_of_other_pool_does_not_block_pods() {
    in_namespace(async || {
        let mut node = fixture();
        let mut pool = node.objects.pools[0].clone();
        pool.metadata.name = Some("far".into());
        pool.spec.cidr = "10.99.0.0/16".parse().unwrap();
        let mut block = node.objects.subnets[1].clone();
        block.spec.cidr = "10.99.0.0/26".parse().unwrap();
        block.spec.pool = "far".into();
        node.objects.pools.push(pool);
        node.objects.subnets.push(block);
        let modes = &mut node.objects.network.as_mut().unwrap().spec.modes;
        modes.push(NodeMode {
            name: "far".into(),
            pools: vec!["far".into()],
            transport: Transport::Ipip.into(),
            ..modes[0].clone()
        });
        let is_ipip =
            |op: &Op| matches!(op, Op::LinkAdd { name, .. } if name.as_str() == "nw-ipip");
        node.kernel()
            .fail_with(move |op| is_ipip(op).then_some(Errno::EOPNOTSUPP));
        assert_eq!(node.reconcile().await, None, "a retry does not help");
        assert!(node.conflist(), "pods of this node do not need the link");
        let (ready, message) = node.ready();
        assert_eq!(ready, "False");
        assert!(
            message.contains("no ipip links") && message.contains("modprobe ipip"),
            "{message}"
        );
    });
}

#[test]
fn netns_failing_route_does_not_block_routes_of_same_uplink() {
    in_namespace(async || {
        let mut node = fixture();
        let mut block = node.objects.subnets[1].clone();
        block.spec.cidr = "10.244.0.128/26".parse().unwrap();
        block.spec.node = "three".into();
        node.objects.subnets.push(block);
        let modes = &mut node.objects.network.as_mut().unwrap().spec.modes;
        modes[0].transport = Transport::Direct.into();
        node.kernel().change_externally(|state| {
            let key = RouteKey {
                table: TABLE_MAIN,
                dst: "192.0.2.0/24".parse().unwrap(),
                metric: 0,
            };
            let connected = Route {
                kind: RouteKind::Unicast,
                protocol: 2,
                via: None,
                dev: Some("ens7".parse().unwrap()),
                onlink: false,
                source: None,
                mtu: None,
            };
            state.routes.insert(key, connected);
        });
        let first = |op: &Op| matches!(op, Op::RouteAdd { key, .. } if key.dst.to_string() == "10.244.0.64/26");
        node.kernel()
            .fail_with(move |op| first(op).then_some(Errno::ENETUNREACH));
        assert!(node.reconcile().await.is_some());
        let (_, message) = node.ready();
        assert!(message.contains("10.244.0.64/26"), "{message}");
        let state = node.kernel().state();
        assert!(
            state
                .routes
                .keys()
                .any(|key| key.dst.to_string() == "10.244.0.128/26"),
            "the other route is added"
        );
    });
}

#[test]
fn netns_later_programming_failure_keeps_conflist() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        node.kernel().change_externally(|state| state.fdb.clear());
        node.kernel()
            .fail_with(|op| matches!(op, Op::FdbReplace { .. }).then_some(Errno::EBUSY));
        node.objects.pools[0].spec.disabled = true;
        assert!(node.reconcile().await.is_some());
        assert_eq!(node.ready().0, "False");
        assert!(node.conflist());
        let plugin = NodeConfig::read(&node.dir.path().join("run")).unwrap();
        assert!(
            plugin.pools[0].disabled,
            "node.json is written nevertheless"
        );
    });
}

#[test]
fn netns_missing_node_address_or_node_network_removes_nothing() {
    in_namespace(async || {
        let mut node = fixture();
        node.reconcile().await;
        assert!(!node.kernel().take_applied().is_empty());
        node.kernel().change_externally(|state| {
            state.addresses.retain(|key, _| key.link.as_str() != "ens7");
        });
        assert!(node.reconcile().await.is_some());
        assert!(node.ready().1.contains("192.0.2.1"));
        assert_eq!(node.problems("programming_failed"), 1);
        node.objects.network = None;
        assert_eq!(node.reconcile().await, None);
        assert_eq!(node.problems("programming_failed"), 0);
        assert_eq!(node.kernel().take_applied(), []);
    });
}

#[test]
fn netns_retry_backoff_grows_and_resets_after_success() {
    in_namespace(async || {
        let mut node = fixture();
        node.kernel().fail_with(|_| Some(Errno::EPERM));
        let first = node.reconcile().await.unwrap();
        let second = node.reconcile().await.unwrap();
        assert!(
            first <= RETRY.0 && second >= RETRY.0,
            "{first:?} {second:?}"
        );
        for _ in 0..20 {
            assert!(node.reconcile().await.unwrap() <= RETRY.1);
        }
        node.kernel().clear_fault();
        assert_eq!(node.reconcile().await, None);
        node.kernel().change_externally(|state| state.fdb.clear());
        node.kernel().fail_with(|_| Some(Errno::EPERM));
        assert!(node.reconcile().await.unwrap() <= RETRY.0);
    });
}
