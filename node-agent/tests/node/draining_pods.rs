//! The status lists the pods with addresses of a pool that is disabled or being deleted.

use super::lab::{Node, ROUTED, wait_for};

fn pool(metadata: &str, spec: &str) -> String {
    format!(
        "kind: IPPool\nmetadata: {{name: routed{metadata}}}\nspec: {{cidr: \"10.244.0.0/16\", blockSize: 22{spec}}}"
    )
}

fn wait_until_listed(node: &Node, pods: &[&str]) {
    wait_for("the list of pods", || {
        let draining = node.status()?.draining_pods.into_iter();
        let listed: Vec<String> = draining
            .map(|pod| format!("{} {} {}", pod.pool, pod.namespace, pod.name))
            .collect();
        (listed == pods).then_some(()).ok_or(format!("{listed:?}"))
    });
}

#[test]
fn netns_pods_of_disabled_or_deleted_pool_are_listed() {
    let node = Node::ready(ROUTED);
    let (one, two) = (node.add("one"), node.add("two"));
    wait_until_listed(&node, &[]);
    node.write_object("pool-routed.yaml", &pool("", ", disabled: true"));
    wait_until_listed(&node, &["routed default one", "routed default two"]);
    node.write_object("pool-routed.yaml", &pool("", ""));
    wait_until_listed(&node, &[]);
    let deleting = ", deletionTimestamp: \"2026-01-01T00:00:00Z\"";
    node.write_object("pool-routed.yaml", &pool(deleting, ""));
    wait_until_listed(&node, &["routed default one", "routed default two"]);
    node.del(&one);
    wait_until_listed(&node, &["routed default two"]);
    node.del(&two);
    wait_until_listed(&node, &[]);
}
