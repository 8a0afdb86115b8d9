//! The plugin on a full disk.

use super::netns_node::{Namespace, Node, skipped};
use super::{Disk, gc, node_on, refuses, used, works};

/// ADD fails because the file system has no space for the file, and leaves nothing.
fn refuses_records(node: &Node, file: &str) {
    refuses(
        node,
        file,
        "free blocks (df) or inodes (df -i)",
        "No space left on device",
    );
}

#[test]
fn netns_add_on_full_disk_is_refused_and_leaves_nothing() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = used(node_on(&disk));
    disk.fill_up_to(0);
    refuses_records(&node, "attachments");
    disk.free_space();
    works(&node);
}

/// A record needs two directory entries, and a temporary file a third: whichever fails, none stays.
#[test]
fn netns_add_without_inodes_for_records_leaves_nothing() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = used(node_on(&disk));
    for inodes in 0..3 {
        disk.fill_inodes_up_to(inodes);
        refuses_records(&node, "attachments");
        disk.free_space();
    }
    disk.fill_inodes_up_to(3);
    works(&node);
}

#[test]
fn netns_add_without_inode_for_lock_leaves_nothing() {
    if skipped() {
        return;
    }
    for (inodes, file) in [(0, "attachments"), (1, "lock")] {
        let disk = Disk::new();
        let node = node_on(&disk);
        disk.fill_inodes_up_to(inodes);
        refuses_records(&node, file);
        disk.free_space();
        works(&node);
    }
}

/// The allocation cursors in the lock file are optional.
#[test]
fn netns_add_with_disk_space_for_record_only_succeeds() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = node_on(&disk);
    disk.fill_up_to(1);
    works(&node);
}

#[test]
fn netns_check_del_and_gc_work_on_full_disk() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = node_on(&disk);
    let pods = [Namespace::new(), Namespace::new()];
    let added = ["one", "two"].map(|name| node.add(name, &pods[usize::from(name == "two")]));
    disk.fill_up_to(0);
    assert!(node.check("one", &pods[0], &added[0]).success);
    assert!(gc(&node, &["one"]).success);
    assert_eq!(node.records(), ["10.244.0.2", "fd00:244::2"]);
    assert!(node.namespace.pings("10.244.0.2"));
    // The deleted record has freed space.
    disk.fill_up_to(0);
    assert!(node.del("one", &pods[0].path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
