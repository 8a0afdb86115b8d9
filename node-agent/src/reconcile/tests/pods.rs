//! Repair and reclaiming of objects of pods.

use crate::reconcile::tests::*;

#[test]
fn netns_pod_repair_count_is_written_after_invalidation() {
    in_namespace(async || {
        let mut node = fixture();
        let pod = crate::pods::tests::attachment("one", &["10.244.0.2"]);
        let store = Store::new(&node.dir.path().join("run"));
        drop(store.lock(Duration::ZERO).unwrap().reserve(&pod).unwrap());
        let expected = netweft_cni::pod::host_state(&pod);
        node.kernel()
            .change_externally(|state| state.links.extend(expected.links));
        assert_eq!(node.reconcile().await, None);
        assert!(
            expected
                .routes
                .keys()
                .all(|key| node.kernel().state().routes.contains_key(key))
        );
        let repairs = |node: &Fixture| status_of(node.dir.path()).repairs.unwrap();
        assert_eq!(repairs(&node).restored, 2, "a route and a neighbour");
        node.kernel().change_externally(|state| {
            state
                .routes
                .retain(|key, _| !expected.routes.contains_key(key));
        });
        node.reconcile().await;
        assert_eq!(repairs(&node).restored, 2, "counts alone are not written");
        node.reconciler.invalidate_status();
        node.reconcile().await;
        assert_eq!(repairs(&node).restored, 3);
    });
}

#[test]
fn netns_leaked_attachment_is_rechecked_and_reported() {
    in_namespace(async || {
        let mut node = fixture();
        let pod = crate::pods::tests::attachment("one", &["10.244.0.2"]);
        let store = Store::new(&node.dir.path().join("run"));
        drop(store.lock(Duration::ZERO).unwrap().reserve(&pod).unwrap());
        let delay = node.reconcile().await.unwrap();
        assert!(
            delay > Duration::from_secs(1) && delay <= Duration::from_secs(5),
            "{delay:?}"
        );
        assert_eq!(node.ready().0, "True");
        assert_eq!(status_of(node.dir.path()).subnets[0].used, 1);
        std::fs::write(node.dir.path().join("run/attachments/10.244.0.9"), "").unwrap();
        node.reconcile().await;
        let (ready, message) = node.ready();
        assert_eq!(ready, "True");
        assert!(
            message.contains("the attachment of address 10.244.0.9 cannot be read"),
            "{message}"
        );
    });
}
