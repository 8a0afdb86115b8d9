//! The plugin on a full or read-only disk, and with unreadable records: errors name the file and the remedy, a failed
//! command leaves nothing, and no address with an unreadable record is allocated.
//!
//! The disk is a tmpfs in a mount namespace of the test. A child process keeps the mount namespace, and its files are
//! accessible by `/proc/PID/root`.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod full;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "../netns_node/mod.rs"]
mod netns_node;
mod read_only;
mod unreadable_records;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use netns_node::{Namespace, Node, PluginOutput, pool};
use serde_json::json;
use tempfile::TempDir;

const BLOCKS: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];
const PAGE: u64 = 4096;

/// A small file system.
struct Disk {
    mount_point: TempDir,
    holder: Child,
}

impl Disk {
    fn new() -> Self {
        let mount_point = tempfile::tempdir().unwrap();
        let script =
            "mount -t tmpfs -o size=64k,nr_inodes=64 tmpfs \"$0\" && echo ready && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(mount_point.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut ready = [0; 6];
        let stdout = holder.stdout.as_mut().unwrap();
        stdout
            .read_exact(&mut ready)
            .expect("mount a tmpfs: run as root");
        Self {
            mount_point,
            holder,
        }
    }

    fn path(&self) -> PathBuf {
        let mount_point = self.mount_point.path().display();
        PathBuf::from(format!("/proc/{}/root{mount_point}", self.holder.id()))
    }

    /// Remounts the file system with `ro` or `rw`.
    fn remount(&self, option: &str) {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.holder.id());
        let remount = format!("remount,{option}");
        let status = Command::new("nsenter")
            .args([&namespace, "mount", "-o", &remount])
            .arg(self.mount_point.path())
            .status();
        assert!(status.unwrap().success());
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Leaves this number of pages free.
    fn fill_up_to(&self, pages: u64) {
        let mut filler = File::create(self.filler()).unwrap();
        let mut length = 0;
        while filler.write_all(&[0; PAGE as usize]).is_ok() {
            length += PAGE;
        }
        filler.set_len(length - pages * PAGE).unwrap();
    }

    /// Leaves this number of inodes free.
    fn fill_inodes_up_to(&self, inodes: usize) {
        fs::create_dir(self.filler()).unwrap();
        let name = |n: usize| self.filler().join(n.to_string());
        let used = (0..).take_while(|n| File::create(name(*n)).is_ok()).count();
        for n in 0..inodes {
            fs::remove_file(name(used - 1 - n)).unwrap();
        }
    }

    fn free_space(&self) {
        let _ = fs::remove_file(self.filler());
        let _ = fs::remove_dir_all(self.filler());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A node whose run directory is on the disk.
fn node_on(disk: &Disk) -> Node {
    let node = Node::in_dir(disk.path(), Box::new(()));
    node.configure(&[pool("p", &BLOCKS)]);
    node
}

/// The node after ADD and DEL of a pod: all directories exist.
fn used(node: Node) -> Node {
    let pod = Namespace::new();
    assert!(node.add("first", &pod).success);
    assert!(node.del("first", &pod.path()).success);
    node
}

fn status(node: &Node) -> PluginOutput {
    node.raw("STATUS", &[], &node.conf().to_string())
}

/// GC with the first links of these containers as valid attachments.
fn gc(node: &Node, valid: &[&str]) -> PluginOutput {
    let mut conf = node.conf();
    let valid = valid
        .iter()
        .map(|id| json!({ "containerID": id, "ifname": "eth0" }));
    conf["cni.dev/valid-attachments"] = valid.collect();
    node.raw("GC", &[], &conf.to_string())
}

/// ADD fails with an error that has the file, the remedy and the cause, and leaves nothing.
fn refuses(node: &Node, file: &str, remedy: &str, cause: &str) {
    let pod = Namespace::new();
    let refused = node.add("one", &pod);
    assert_eq!(refused.code(), 5, "{refused:?}");
    assert!(refused.message().contains(remedy), "{refused:?}");
    let file = node.run_dir().join(file).display().to_string();
    let details = refused.json["details"].as_str().unwrap();
    let error = format!("{}: {details}", refused.message());
    for text in [&file, cause] {
        assert!(error.contains(text), "{text}: {refused:?}");
    }
    assert_eq!(node.leftovers(), Vec::<String>::new());
    assert!(!pod.ip("link show").contains("eth0"));
}

fn works(node: &Node) {
    let pod = Namespace::new();
    let added = node.add("one", &pod);
    assert!(node.namespace.pings(&added.ips()[0]));
    assert!(node.check("one", &pod, &added).success);
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
