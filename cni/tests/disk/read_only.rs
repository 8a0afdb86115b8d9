//! Nothing can be written.

use super::lab::{Namespace, Node, skipped};
use super::{Disk, gc, node_on, refuses, status, used, works};

/// A node that is not ready loses its pods, and those that run need no room.
#[test]
fn netns_a_disk_that_is_full_or_read_only_does_not_make_a_node_unready() {
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
fn netns_on_a_read_only_disk_add_is_refused_and_leaves_nothing_until_it_can_be_written() {
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
        refuses(
            &node,
            file,
            "mount it so that it can be written",
            "Read-only file system",
        );
        disk.remount("rw");
        works(&node);
    }
}

#[test]
fn netns_on_a_read_only_disk_del_says_so_and_the_address_stays_taken_until_it_can_be_freed() {
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
        refused
            .message()
            .contains("mount it so that it can be written"),
        "{refused:?}"
    );
    assert_eq!(node.records(), ["10.244.0.2", "fd00:244::2"]);
    disk.remount("rw");
    assert!(node.del("one", &pod.path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_on_a_read_only_disk_del_of_what_was_never_added_succeeds() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = used(node_on(&disk));
    disk.remount("ro");
    assert!(node.del("never-added", "").success);
}

#[test]
fn netns_on_a_read_only_disk_a_pod_is_checked() {
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
fn netns_on_a_read_only_disk_gc_says_why_and_does_what_is_left_to_do_later() {
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
