//! Routes of BIRD and backup routes.

use crate::reconcile::tests::*;

/// A route of BIRD in the kernel.
fn bird_route(dst: &str, metric: u32) -> (RouteKey, Route) {
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: dst.parse().unwrap(),
        metric,
    };
    let route = Route {
        kind: RouteKind::Unicast,
        protocol: 12,
        via: "192.0.2.3".parse().ok(),
        dev: "ens7".parse().ok(),
        onlink: false,
        source: None,
        mtu: None,
    };
    (key, route)
}

/// Makes the transport of the node's mode BGP.
fn enable_bgp(node: &mut Fixture) {
    let bgp = "{asNumber: 64512, routerID: 192.0.2.1, listenPort: 179, sessions: []}";
    let network = node.objects.network.as_mut().unwrap();
    network.spec.bgp = Some(serde_saphyr::from_str(bgp).unwrap());
    network.spec.modes[0].transport = Transport::Bgp.into();
}

#[test]
fn netns_leftover_bird_routes_are_removed_foreign_ones_kept() {
    in_namespace(async || {
        let mut node = fixture();
        let own = bird_route("10.244.9.0/26", 78);
        let foreign = [
            bird_route("10.244.9.64/26", 32),
            bird_route("198.51.100.0/24", 78),
        ];
        node.kernel().change_externally(|state| {
            state.routes.extend([own.clone()]);
            state.routes.extend(foreign.clone());
        });
        node.reconcile().await;
        let exists = |node: &Fixture, (key, _): &(RouteKey, Route)| {
            node.kernel().state().routes.contains_key(key)
        };
        assert!(exists(&node, &own), "BIRD may still use it");
        let counts = status_of(node.dir.path()).routes.unwrap();
        assert_eq!((counts.tunnel, counts.bgp), (1, 1));
        node.bird
            .send_modify(|observation| observation.released = true);
        node.reconcile().await;
        assert!(!exists(&node, &own));
        assert!(foreign.iter().all(|route| exists(&node, route)));
    });
}

#[test]
fn netns_bird_config_is_written_and_bird_routes_are_kept() {
    in_namespace(async || {
        let mut node = fixture();
        enable_bgp(&mut node);
        let bgp_routes = bird_route("10.244.0.64/26", 78);
        node.kernel()
            .change_externally(|state| state.routes.extend([bgp_routes.clone()]));
        // An observation from before BGP was enabled.
        node.bird
            .send_modify(|observation| observation.released = true);
        assert_eq!(node.reconcile().await, None);
        assert!(node.reconciler.tasks.bird.desired().is_some());
        assert!(node.kernel().state().routes.contains_key(&bgp_routes.0));
        assert_eq!(node.ready().0, "True", "sessions do not affect readiness");
        assert!(node.conflist());
    });
}

/// The backup routes in the kernel.
fn backup_routes(node: &Fixture) -> Vec<(String, Option<String>)> {
    let routes = node.kernel().state().routes;
    let backup = routes
        .iter()
        .filter(|(key, route)| key.metric == 79 && route.protocol == 78);
    backup
        .map(|(key, route)| (key.dst.to_string(), route.via.map(|via| via.to_string())))
        .collect()
}

#[test]
fn netns_starting_bird_has_backup_routes() {
    in_namespace(async || {
        let mut node = fixture();
        enable_bgp(&mut node);
        let own = bird_route("10.244.0.64/26", 78);
        let foreign = bird_route("198.51.100.0/24", 78);
        let remove = |state: &mut NetworkState| drop(state.routes.remove(&own.0));
        node.kernel()
            .change_externally(|state| state.routes.extend([own.clone(), foreign.clone()]));
        node.bird
            .send_modify(|observation| observation.connection = 1);
        assert_eq!(node.reconcile().await, None);
        assert_eq!(backup_routes(&node), []);
        let before = status_of(node.dir.path()).routes.unwrap();
        // BIRD is killed.
        node.bird
            .send_modify(|observation| observation.unavailable = true);
        assert!(
            node.reconcile().await.is_some(),
            "to remove the backup routes later"
        );
        let expected = [("10.244.0.64/26".to_owned(), Some("192.0.2.3".to_owned()))];
        assert_eq!(backup_routes(&node), expected);
        assert_eq!(status_of(node.dir.path()).routes.unwrap(), before);
        // A new BIRD starts, and removes the routes that its peers have not advertised yet.
        node.bird.send_modify(|observation| {
            observation.unavailable = false;
            observation.connection = 2;
        });
        node.reconcile().await;
        node.kernel().change_externally(remove);
        node.reconcile().await;
        assert_eq!(backup_routes(&node), expected);
        assert_eq!(status_of(node.dir.path()).drift, None);
        // BGP is disabled.
        let network = node.objects.network.as_mut().unwrap();
        network.spec.bgp = None;
        node.reconcile().await;
        assert_eq!(backup_routes(&node), []);
    });
}
