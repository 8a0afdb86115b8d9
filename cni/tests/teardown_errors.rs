//! Errors of DEL and GC that cannot remove a link or a record: code 101 of the plugin. The plugin runs without
//! CAP_NET_ADMIN, or with a record that cannot be deleted.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

#[expect(dead_code, reason = "other tests use the rest")]
mod netns_node;

use netns_node::{Namespace, Node, PluginOutput, environment, skipped};
use serde_json::{Value, json};

const BLOCKS: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];

fn without_net_admin(node: &Node, command: &str, container: &str, conf: &Value) -> PluginOutput {
    let wrapper = ["setpriv", "--bounding-set", "-net_admin"];
    node.raw_with(
        &wrapper,
        command,
        &environment(container, ""),
        &conf.to_string(),
    )
}

/// The error has the link and the cause, and the pod is still connected.
fn assert_pod_is_kept(node: &Node, answer: &PluginOutput, link: &str) {
    assert_eq!(answer.code(), 101);
    assert_eq!(
        answer.message(),
        format!(
            "delete link {link}: EPERM (Operation not permitted); the plugin needs CAP_NET_ADMIN: check the container \
             runtime and its security profile; links and addresses that were not removed stay until the container runtime \
             repeats DEL or GC"
        )
    );
    assert_eq!(node.records(), ["10.244.0.2", "fd00:244::2"]);
    assert!(node.namespace.pings("10.244.0.2"));
}

/// A node with a pod, and the name of the pod's link.
fn node_with_pod() -> (Node, Namespace, String) {
    let (node, pod) = (Node::new(&BLOCKS), Namespace::new());
    let added = node.add("one", &pod);
    let link = added.json["interfaces"][0]["name"].as_str().unwrap();
    let link = link.to_owned();
    (node, pod, link)
}

#[test]
fn netns_del_with_undeletable_link_fails_and_keeps_addresses() {
    if skipped() {
        return;
    }
    let (node, pod, link) = node_with_pod();
    let refused = without_net_admin(&node, "DEL", "one", &node.conf());
    assert_pod_is_kept(&node, &refused, &link);
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_gc_with_undeletable_link_fails_and_keeps_addresses() {
    if skipped() {
        return;
    }
    let (node, _pod, link) = node_with_pod();
    let mut conf = node.conf();
    conf["cni.dev/valid-attachments"] = json!([]);
    let refused = without_net_admin(&node, "GC", "one", &conf);
    assert_pod_is_kept(&node, &refused, &link);
    assert!(node.raw("GC", &[], &conf.to_string()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

/// CNI 1.1, "GC": after an error a plugin continues with the rest, and reports the error.
#[test]
fn netns_gc_failing_on_one_address_frees_the_others() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS[..1]);
    let pods = [Namespace::new(), Namespace::new(), Namespace::new()];
    for (container, pod) in ["a", "b", "c"].iter().zip(&pods) {
        assert!(node.add(container, pod).success);
    }
    let mut conf = node.conf();
    conf["cni.dev/valid-attachments"] = json!([]);
    // unlink(2): EBUSY for a mount point.
    let record = node.attachments().join("10.244.0.3");
    let script = "mount --bind \"$0\" \"$0\" && exec \"$@\"";
    let wrapper = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        record.to_str().unwrap(),
    ];
    let refused = node.raw_with(&wrapper, "GC", &[], &conf.to_string());
    assert_eq!(refused.code(), 101);
    assert!(refused.message().contains("busy"), "{refused:?}");
    assert_eq!(node.leftovers(), ["10.244.0.3"]);
    assert!(node.raw("GC", &[], &conf.to_string()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
