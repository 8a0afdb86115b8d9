//! The plugin on a read-only disk.

use super::netns_node::{Namespace, Node, skipped};
use super::{Disk, gc, node_on, refuses, status, used, works};

/// The pods of a node that is not ready are evicted, but running pods need no disk space.
#[test]
fn netns_status_on_full_or_read_only_disk_succeeds() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = used(node_on(&disk));
    disk.fill_up_to(0);
    assert!(status(&node).success);
    disk.remount("ro");
    assert!(status(&node).success);
}

#[test]
fn netns_add_on_read_only_disk_leaves_nothing() {
    if skipped() {
        return;
    }
    for (prepare, file) in [
        (used as fn(Node) -> Node, "lock"),
        (|node| node, "attachments"),
    ] {
        let disk = Disk::new();
        let node = prepare(node_on(&disk));
        disk.remount("ro");
        refuses(&node, file, "mount it read-write", "Read-only file system");
        disk.remount("rw");
        works(&node);
    }
}

#[test]
fn netns_del_on_read_only_disk_fails_and_keeps_address() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = node_on(&disk);
    let pod = Namespace::new();
    assert!(node.add("one", &pod).success);
    disk.remount("ro");
    let refused = node.del("one", &pod.path());
    assert_eq!(refused.code(), 5);
    assert!(
        refused.message().contains("mount it read-write"),
        "{refused:?}"
    );
    assert_eq!(node.records(), ["10.244.0.2", "fd00:244::2"]);
    disk.remount("rw");
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_del_of_unknown_pod_on_read_only_disk_succeeds() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = used(node_on(&disk));
    disk.remount("ro");
    assert!(node.del("never-added", "").success);
}

#[test]
fn netns_check_on_read_only_disk_succeeds() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = node_on(&disk);
    let pod = Namespace::new();
    let added = node.add("one", &pod);
    disk.remount("ro");
    assert!(node.check("one", &pod, &added).success);
}

#[test]
fn netns_gc_on_read_only_disk_fails_and_later_gc_finishes() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = node_on(&disk);
    let pods = [Namespace::new(), Namespace::new()];
    let added = node.add("one", &pods[0]);
    assert!(node.add("two", &pods[1]).success);
    disk.remount("ro");
    let refused = gc(&node, &["one"]);
    assert_eq!(refused.code(), 101);
    assert!(
        refused.message().contains("lock") && refused.message().contains("Read-only file system"),
        "{refused:?}"
    );
    disk.remount("rw");
    assert!(gc(&node, &["one"]).success);
    assert_eq!(node.records(), ["10.244.0.2", "fd00:244::2"]);
    assert!(node.check("one", &pods[0], &added).success);
}
