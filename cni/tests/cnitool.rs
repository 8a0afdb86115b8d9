//! The plugin with `cnitool`, the reference runtime (libcni): its configuration lists, cached results and commands.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

#[expect(dead_code, reason = "other tests use the rest")]
mod netns_node;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use netns_node::{Namespace, Node, skipped};

const BLOCKS: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];

/// A node with the reference runtime.
struct Runtime {
    node: Node,
    conf_dir: TempDir,
    /// Mounted on /var/lib: the reference runtime caches results in /var/lib/cni, which cannot be configured.
    state: TempDir,
}

impl Runtime {
    fn new(node: Node) -> Self {
        Self::with_version(node, "1.1.0")
    }

    fn with_version(node: Node, version: &str) -> Self {
        let (conf_dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let list = json!({
            "cniVersion": version,
            "name": "netweft",
            "plugins": [{ "type": "netweft", "runDir": node.run_dir() }],
        });
        std::fs::write(
            conf_dir.path().join("10-netweft.conflist"),
            list.to_string(),
        )
        .unwrap();
        Self {
            node,
            conf_dir,
            state,
        }
    }

    fn call(&self, command: &str, pod: &Namespace) -> Output {
        let plugin = Path::new(env!("CARGO_BIN_EXE_netweft"));
        self.node.namespace.run(|| {
            Command::new("unshare")
                .args([
                    "--mount",
                    "sh",
                    "-c",
                    "mount --bind \"$0\" /var/lib && exec \"$@\"",
                ])
                .arg(self.state.path())
                .arg(cnitool())
                .args([command, "netweft", &pod.path()])
                .env("NETCONFPATH", self.conf_dir.path())
                .env("CNI_PATH", plugin.parent().unwrap())
                .output()
                .unwrap()
        })
    }

    fn succeeds(&self, command: &str, pod: &Namespace) -> String {
        let output = self.call(command, pod);
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, command: &str, pod: &Namespace) -> String {
        let output = self.call(command, pod);
        assert!(!output.status.success(), "{command}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }
}

fn cnitool() -> PathBuf {
    let folder = std::env::var_os("NETWEFT_CNI_BIN").expect(
        "NETWEFT_CNI_BIN names the folder with cnitool: NETWEFT_CNI_BIN=$(e2e/cluster/build-tools.sh cni)",
    );
    Path::new(&folder).join("cnitool")
}

#[test]
fn netns_cnitool_adds_checks_and_deletes() {
    if skipped() {
        return;
    }
    let (runtime, pod) = (Runtime::new(Node::new(&BLOCKS)), Namespace::new());
    runtime.succeeds("status", &pod);
    let result: Value = serde_json::from_str(&runtime.succeeds("add", &pod)).unwrap();
    let ips: Vec<&str> = result["ips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ip| ip["address"].as_str().unwrap())
        .collect();
    assert_eq!(ips, ["10.244.0.2/32", "fd00:244::2/128"]);
    assert!(runtime.node.namespace.pings("10.244.0.2"));
    runtime.succeeds("check", &pod);
    // CNI 1.1, "ADD": a second ADD of the same link fails, and the first attachment stays.
    assert!(runtime.fails("add", &pod).contains("eth0"));
    assert_eq!(runtime.node.records(), ["10.244.0.2", "fd00:244::2"]);
    runtime.succeeds("check", &pod);
    runtime.node.namespace.ip("route delete 10.244.0.2");
    assert!(runtime.fails("check", &pod).contains("10.244.0.2"));
    runtime.succeeds("del", &pod);
    runtime.succeeds("del", &pod);
    assert_eq!(runtime.node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_cnitool_works_with_older_cni_versions() {
    if skipped() {
        return;
    }
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let pod = Namespace::new();
        let runtime = Runtime::with_version(Node::new(&BLOCKS), version);
        let result: Value = serde_json::from_str(&runtime.succeeds("add", &pod)).unwrap();
        assert_eq!(result["cniVersion"], json!(version));
        if version != "0.3.1" {
            runtime.succeeds("check", &pod);
            runtime.node.namespace.ip("route delete 10.244.0.2");
            runtime.fails("check", &pod);
        }
        runtime.succeeds("del", &pod);
        assert_eq!(runtime.node.leftovers(), Vec::<String>::new(), "{version}");
    }
}

#[test]
fn netns_cnitool_failed_add_leaves_nothing() {
    if skipped() {
        return;
    }
    let (runtime, pod) = (Runtime::new(Node::new(&BLOCKS)), Namespace::new());
    // A foreign route with the key of the pod's route: the kernel refuses the latter after the link is created.
    let foreign = "route add blackhole 10.244.0.2/32 metric 20 proto 4";
    runtime.node.namespace.ip(foreign);
    let before = runtime.node.leftovers();
    assert!(runtime.fails("add", &pod).contains("EEXIST"));
    assert!(!pod.ip("link show").contains("eth0"));
    runtime.succeeds("del", &pod);
    assert_eq!(runtime.node.leftovers(), before);
}

/// `cnitool gc` passes no valid attachments: it detaches all cached ones, and then calls GC without a list, which is not an
/// empty list.
#[test]
fn netns_cnitool_gc_detaches_all_and_reports_missing_list() {
    if skipped() {
        return;
    }
    let runtime = Runtime::new(Node::new(&BLOCKS));
    let pods = [Namespace::new(), Namespace::new()];
    for pod in &pods {
        runtime.succeeds("add", pod);
    }
    assert_eq!(runtime.node.records().len(), 4);
    let output = runtime.fails("gc", &pods[0]);
    assert!(output.contains("cni.dev/valid-attachments"), "{output}");
    assert_eq!(runtime.node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_cnitool_shows_why_node_is_not_ready() {
    if skipped() {
        return;
    }
    let (runtime, pod) = (Runtime::new(Node::without_config()), Namespace::new());
    for command in ["status", "add"] {
        assert!(
            runtime.fails(command, &pod).contains("first sync"),
            "{command}"
        );
    }
    assert_eq!(runtime.node.leftovers(), Vec::<String>::new());
}
