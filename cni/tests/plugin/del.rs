//! DEL and GC: what they remove and what they keep.

use serde_json::json;

use super::DUAL;
use super::netns_node::{Namespace, Node, pool, skipped};

#[test]
fn netns_del_without_netns_or_attachment_succeeds() {
    if skipped() {
        return;
    }
    let node = Node::without_config();
    let gone = "/run/netns/gone";
    for netns in [gone, ""] {
        assert!(node.del("never-added", netns).success);
    }
    assert_eq!(node.records(), Vec::<String>::new());
    node.configure(&[pool("p", &["10.244.0.0/29"])]);
    let mut conf = node.conf();
    conf["prevResult"] = json!({});
    for (container, netns) in [("one", gone), ("two", "")] {
        let pod = Namespace::new();
        assert!(node.add(container, &pod).success);
        // The kernel deletes the pod's end of the link with the sandbox.
        drop(pod);
        assert!(node.call("DEL", container, netns, &conf).success);
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn netns_del_removes_link_without_record_and_vice_versa() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let answer = node.add("one", &pod);
    for ip in answer.ips() {
        std::fs::remove_file(node.attachments().join(ip)).unwrap();
    }
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
    let answer = node.add("one", &pod);
    let link = answer.json["interfaces"][0]["name"].as_str().unwrap();
    node.namespace.ip(&format!("link delete {link}"));
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_repeated_del_of_old_sandbox_keeps_new_pod_address() {
    if skipped() {
        return;
    }
    let node = Node::for_two_pods();
    let old = Namespace::new();
    assert_eq!(node.add("old", &old).ips(), ["10.244.0.2"]);
    assert!(node.del("old", &old.path()).success);
    let pods = [Namespace::new(), Namespace::new()];
    let last =
        [node.add("a", &pods[0]), node.add("b", &pods[1])].map(|answer| answer.ips()[0].clone());
    assert_eq!(
        last,
        ["10.244.0.3", "10.244.0.2"],
        "a released address is reused last"
    );
    assert!(node.del("old", &old.path()).success);
    assert_eq!(node.records(), ["10.244.0.2", "10.244.0.3"]);
    assert!(node.namespace.pings("10.244.0.2"));
}

#[test]
fn netns_unreadable_record_keeps_its_address() {
    if skipped() {
        return;
    }
    let node = Node::for_two_pods();
    std::fs::create_dir(node.attachments()).unwrap();
    std::fs::write(node.attachments().join("10.244.0.2"), "").unwrap();
    let pod = Namespace::new();
    assert_eq!(node.add("one", &pod).ips(), ["10.244.0.3"]);
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.records(), ["10.244.0.2"]);
}

#[test]
fn netns_gc_removes_attachments_unknown_to_runtime() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pods = [Namespace::new(), Namespace::new(), Namespace::new()];
    let answers: Vec<_> = ["a", "b", "c"]
        .iter()
        .zip(&pods)
        .map(|(name, pod)| node.add(name, pod))
        .collect();
    // A link without a record, and a record without a link.
    std::fs::remove_file(node.attachments().join("10.244.0.3")).unwrap();
    std::fs::remove_file(node.attachments().join("fd00:244::3")).unwrap();
    node.namespace.ip(&format!(
        "link delete {}",
        answers[2].json["interfaces"][0]["name"].as_str().unwrap()
    ));
    assert_eq!(
        node.raw("GC", &[], &node.conf().to_string()).code(),
        7,
        "without the list"
    );
    let mut conf = node.conf();
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "a", "ifname": "eth0" }]);
    for _ in 0..2 {
        assert!(node.raw("GC", &[], &conf.to_string()).success);
        assert_eq!(node.records(), ["10.244.0.2", "fd00:244::2"]);
        assert!(node.check("a", &pods[0], &answers[0]).success);
        assert!(!pods[1].ip("link show").contains("eth0"));
    }
    conf["cni.dev/valid-attachments"] = json!([]);
    assert!(node.raw("GC", &[], &conf.to_string()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
