//! What the plugin says when it is not let clean up: code 101, ours, for DEL and GC. It runs without the capability to change
//! links, or where a record cannot be removed.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

#[expect(dead_code, reason = "the other tests use the rest of it")]
mod lab;

use lab::{Answer, Namespace, Node, environment, skipped};
use serde_json::{Value, json};

const BLOCKS: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];

fn powerless(node: &Node, command: &str, container: &str, conf: &Value) -> Answer {
    let through = ["setpriv", "--bounding-set", "-net_admin"];
    node.raw_through(
        &through,
        command,
        &environment(container, ""),
        &conf.to_string(),
    )
}

/// Says which link stays and why, and takes nothing from the pod.
fn keeps(node: &Node, answer: &Answer, link: &str) {
    assert_eq!(answer.code(), 101);
    assert_eq!(
        answer.message(),
        format!("delete link {link}: EPERM (Operation not permitted)")
    );
    assert_eq!(node.records(), ["10.244.0.2", "fd00:244::2"]);
    assert!(node.namespace.pings("10.244.0.2"));
}

#[test]
fn netns_del_with_undeletable_link_fails_and_keeps_addresses() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS);
    let pod = Namespace::new();
    let added = node.add("one", &pod);
    let link = added.json["interfaces"][0]["name"].as_str().unwrap();
    keeps(&node, &powerless(&node, "DEL", "one", &node.conf()), link);
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_gc_with_undeletable_link_fails_and_keeps_addresses() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS);
    let pod = Namespace::new();
    let added = node.add("one", &pod);
    let link = added.json["interfaces"][0]["name"].as_str().unwrap();
    let mut conf = node.conf();
    conf["cni.dev/valid-attachments"] = json!([]);
    keeps(&node, &powerless(&node, "GC", "one", &conf), link);
    assert!(node.raw("GC", &[], &conf.to_string()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

/// CNI 1.1, "GC": after an error a plugin goes on with the rest, and reports it.
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
    // unlink(2): EBUSY where something is mounted on it.
    let record = node.attachments().join("10.244.0.3");
    let script = "mount --bind \"$0\" \"$0\" && exec \"$@\"";
    let through = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        record.to_str().unwrap(),
    ];
    let refused = node.raw_through(&through, "GC", &[], &conf.to_string());
    assert_eq!(refused.code(), 101);
    assert!(refused.message().contains("busy"), "{refused:?}");
    assert_eq!(node.leftovers(), ["10.244.0.3"]);
    assert!(node.raw("GC", &[], &conf.to_string()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
