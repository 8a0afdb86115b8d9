//! A pool that is disabled, or being deleted: the agent says which pods still have an address of it.

use super::lab::{Node, ROUTED, until};

fn pool(metadata: &str, spec: &str) -> String {
    format!(
        "kind: IPPool\nmetadata: {{name: routed{metadata}}}\nspec: {{cidr: \"10.244.0.0/16\", blockSize: 22{spec}}}"
    )
}

fn wait_until_it_names(node: &Node, pods: &[&str]) {
    until("the agent to say which pods remain", || {
        let draining = node.status()?.draining_pods.into_iter();
        let named: Vec<String> = draining
            .map(|pod| format!("{} {} {}", pod.pool, pod.namespace, pod.name))
            .collect();
        (named == pods).then_some(()).ok_or(format!("{named:?}"))
    });
}

#[test]
fn netns_pods_of_disabled_or_deleted_pool_are_listed() {
    let node = Node::ready(ROUTED);
    let (one, two) = (node.add("one"), node.add("two"));
    wait_until_it_names(&node, &[]);
    node.declare("pool-routed.yaml", &pool("", ", disabled: true"));
    wait_until_it_names(&node, &["routed default one", "routed default two"]);
    node.declare("pool-routed.yaml", &pool("", ""));
    wait_until_it_names(&node, &[]);
    let deleting = ", deletionTimestamp: \"2026-01-01T00:00:00Z\"";
    node.declare("pool-routed.yaml", &pool(deleting, ""));
    wait_until_it_names(&node, &["routed default one", "routed default two"]);
    node.del(&one);
    wait_until_it_names(&node, &["routed default two"]);
    node.del(&two);
    wait_until_it_names(&node, &[]);
}
