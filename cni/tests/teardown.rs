//! What the plugin says when the kernel does not let it clean up: code 101, ours, for DEL and GC. It runs without the
//! capability to change links.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

#[expect(dead_code, reason = "the other tests use the rest of it")]
mod lab;

use std::io::Write;
use std::process::{Command, Stdio};

use lab::{Answer, Namespace, Node, environment, skipped};
use serde_json::{Value, json};

const BLOCKS: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];

fn powerless(node: &Node, verb: &str, container: &str, conf: &Value) -> Answer {
    let mut child = node.namespace.run(|| {
        Command::new("setpriv")
            .args(["--bounding-set", "-net_admin"])
            .arg(env!("CARGO_BIN_EXE_netweft"))
            .env("CNI_COMMAND", verb)
            .envs(environment(container, ""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv, of util-linux")
    });
    let mut input = child.stdin.take().unwrap();
    input.write_all(conf.to_string().as_bytes()).unwrap();
    drop(input);
    Answer::of(&child.wait_with_output().unwrap())
}

/// Says which link stays and why, and takes nothing from the pod.
fn keeps(node: &Node, answer: &Answer, link: &str) {
    assert_eq!(answer.code(), 101);
    assert_eq!(
        answer.message(),
        format!("delete link {link}: EPERM (Operation not permitted)")
    );
    assert_eq!(node.records(), ["10.244.0.1", "fd00:244::1"]);
    assert!(node.namespace.pings("10.244.0.1"));
}

#[test]
fn netns_del_that_cannot_delete_a_link_says_so_and_its_addresses_stay_taken() {
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
fn netns_gc_that_cannot_delete_a_link_says_so_and_its_addresses_stay_taken() {
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
