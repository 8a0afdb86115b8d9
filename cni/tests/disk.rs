//! The plugin on a disk that is full, read-only or littered: what cannot be done is said, nothing half-made stays, and no
//! address is handed out whose record nobody can read.
//!
//! The disk is a tmpfs in a mount namespace of the test's own, which a child holds and whose files are reached through
//! `/proc/PID/root`.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod lab;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lab::{Answer, Namespace, Node, pool, skipped};
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

    /// Makes it `ro` or `rw`.
    fn remount(&self, how: &str) {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.holder.id());
        let remount = format!("remount,{how}");
        let done = Command::new("nsenter")
            .args([&namespace, "mount", "-o", &remount])
            .arg(self.mount_point.path())
            .status();
        assert!(done.unwrap().success());
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Leaves room for so many pages.
    fn fill_up_to(&self, pages: u64) {
        let mut filler = File::create(self.filler()).unwrap();
        let mut length = 0;
        while filler.write_all(&[0; PAGE as usize]).is_ok() {
            length += PAGE;
        }
        filler.set_len(length - pages * PAGE).unwrap();
    }

    /// Leaves so many file names, whatever their files hold.
    fn use_up_names_up_to(&self, names: usize) {
        fs::create_dir(self.filler()).unwrap();
        let name = |n: usize| self.filler().join(n.to_string());
        let used = (0..).take_while(|n| File::create(name(*n)).is_ok()).count();
        for n in 0..names {
            fs::remove_file(name(used - 1 - n)).unwrap();
        }
    }

    fn make_room(&self) {
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

/// A node whose state is on the disk.
fn node_on(disk: &Disk) -> Node {
    let node = Node::in_dir(disk.path(), Box::new(()));
    node.configure(&[pool("p", &BLOCKS)]);
    node
}

/// After a pod has come and gone, so that all directories are there.
fn used(node: Node) -> Node {
    let pod = Namespace::new();
    assert!(node.add("first", &pod).success);
    assert!(node.del("first", &pod.path()).success);
    node
}

fn status(node: &Node) -> Answer {
    node.raw("STATUS", &[], &node.conf().to_string())
}

/// GC when the runtime knows of the first links of these containers.
fn gc(node: &Node, valid: &[&str]) -> Answer {
    let mut conf = node.conf();
    let valid = valid
        .iter()
        .map(|id| json!({ "containerID": id, "ifname": "eth0" }));
    conf["cni.dev/valid-attachments"] = valid.collect();
    node.raw("GC", &[], &conf.to_string())
}

/// A refusal that names the file, what to do and the cause, and left nothing.
fn refuses(node: &Node, file: &str, advice: &str, cause: &str) {
    let pod = Namespace::new();
    let refused = node.add("one", &pod);
    assert_eq!(refused.code(), 5, "{refused:?}");
    assert!(refused.message().contains(advice), "{refused:?}");
    let file = node.run_dir().join(file).display().to_string();
    let details = refused.json["details"].as_str().unwrap();
    let said = format!("{}: {details}", refused.message());
    for word in [&file, cause] {
        assert!(said.contains(word), "{word}: {refused:?}");
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

#[test]
fn netns_on_a_full_disk_add_is_refused_and_leaves_nothing_until_there_is_room() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = used(node_on(&disk));
    disk.fill_up_to(0);
    refuses(&node, "attachments", "make room", "No space left on device");
    disk.make_room();
    works(&node);
}

/// A record takes two names and one for the file aside: whichever is the one too many, none stays.
#[test]
fn netns_without_names_for_its_records_add_is_refused_and_leaves_nothing() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = used(node_on(&disk));
    for names in 0..3 {
        disk.use_up_names_up_to(names);
        refuses(&node, "attachments", "make room", "No space left on device");
        disk.make_room();
    }
    disk.use_up_names_up_to(3);
    works(&node);
}

#[test]
fn netns_without_a_name_for_the_lock_add_is_refused_and_leaves_nothing() {
    if skipped() {
        return;
    }
    for (names, file) in [(0, "attachments"), (1, "lock")] {
        let disk = Disk::new();
        let node = node_on(&disk);
        disk.use_up_names_up_to(names);
        refuses(&node, file, "make room", "No space left on device");
        disk.make_room();
        works(&node);
    }
}

/// Which address was the last is kept in the lock, and is worth less than a pod.
#[test]
fn netns_a_disk_with_room_for_nothing_but_the_record_is_room_enough() {
    if skipped() {
        return;
    }
    let disk = Disk::new();
    let node = node_on(&disk);
    disk.fill_up_to(1);
    works(&node);
}

#[test]
fn netns_on_a_full_disk_pods_are_checked_deleted_and_collected() {
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
    assert_eq!(node.records(), ["10.244.0.1", "fd00:244::1"]);
    assert!(node.namespace.pings("10.244.0.1"));
    assert!(node.del("one", &pods[0].path()).success);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

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
    assert_eq!(node.records(), ["10.244.0.1", "fd00:244::1"]);
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
    assert_eq!(node.records(), ["10.244.0.1", "fd00:244::1"]);
    assert!(node.check("one", &pods[0], &added).success);
}

/// Things that can stand under an address and are no record.
fn unreadable(at: &Path, kind: &str) {
    match kind {
        "empty" => fs::write(at, "").unwrap(),
        "half a record" => fs::write(at, r#"{"version":1,"owner":{"containerID":"x""#).unwrap(),
        "something else" => fs::write(at, r#"["no record"]"#).unwrap(),
        "no text" => fs::write(at, [0xff, 0xfe, 0]).unwrap(),
        "a directory" => fs::create_dir(at).unwrap(),
        "a link to nowhere" => symlink("/nowhere", at).unwrap(),
        other => panic!("{other}"),
    }
}

#[test]
fn netns_an_address_whose_record_cannot_be_read_is_never_handed_out_nor_freed() {
    if skipped() {
        return;
    }
    for kind in [
        "empty",
        "half a record",
        "something else",
        "no text",
        "a directory",
        "a link to nowhere",
    ] {
        let node = Node::new(&["10.244.0.0/30"]);
        fs::create_dir(node.attachments()).unwrap();
        unreadable(&node.attachments().join("10.244.0.1"), kind);
        let pods = [Namespace::new(), Namespace::new()];
        let added = node.add("one", &pods[0]);
        assert_eq!(added.ips(), ["10.244.0.2"], "{kind}");
        assert_eq!(node.add("two", &pods[1]).code(), 11, "{kind}");
        assert!(node.check("one", &pods[0], &added).success, "{kind}");
        assert!(status(&node).success, "{kind}");
        assert!(gc(&node, &["one"]).success, "{kind}");
        assert!(node.del("one", &pods[0].path()).success, "{kind}");
        assert_eq!(node.records(), ["10.244.0.1"], "{kind}");
    }
}

#[test]
fn netns_an_address_in_another_spelling_is_not_handed_out() {
    if skipped() {
        return;
    }
    let node = Node::new(&["fd00:244::/126"]);
    fs::create_dir(node.attachments()).unwrap();
    fs::write(node.attachments().join("FD00:244:0::1"), "").unwrap();
    assert_eq!(node.add("one", &Namespace::new()).ips(), ["fd00:244::2"]);
}

#[test]
fn netns_a_full_block_names_the_addresses_that_only_damaged_records_keep() {
    if skipped() {
        return;
    }
    let node = Node::new(&["10.244.0.0/30"]);
    fs::create_dir(node.attachments()).unwrap();
    fs::write(node.attachments().join("10.244.0.2"), "").unwrap();
    let pods = [Namespace::new(), Namespace::new()];
    assert!(node.add("one", &pods[0]).success);
    assert_eq!(
        node.add("two", &pods[1]).message(),
        "no free address in blocks 10.244.0.0/30 (pool default); the records of 10.244.0.2 cannot be read and keep their \
         addresses: netweft-agent check says why"
    );
}

#[test]
fn netns_del_and_gc_name_a_record_that_they_cannot_read() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS);
    fs::create_dir(node.attachments()).unwrap();
    fs::write(node.attachments().join("10.244.0.1"), "").unwrap();
    for answer in [node.del("one", ""), gc(&node, &[])] {
        assert!(answer.success);
        assert!(
            answer
                .log
                .contains("attachment 10.244.0.1 cannot be read and stays"),
            "{answer:?}"
        );
    }
}

#[test]
fn netns_check_of_a_pod_whose_record_cannot_be_read_says_so() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS[..1]);
    let pod = Namespace::new();
    let added = node.add("one", &pod);
    fs::write(node.attachments().join("10.244.0.1"), "{").unwrap();
    let found = node.check("one", &pod, &added);
    assert_eq!(found.code(), 100);
    for word in [
        "no attachment is recorded for one eth0",
        "attachment 10.244.0.1 cannot be read",
    ] {
        assert!(found.message().contains(word), "{word}: {found:?}");
    }
}

#[test]
fn netns_files_of_others_among_the_records_stop_nothing_and_stay() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS);
    let foreign = [".keep", ".new", "10.244.0.1.bak", "notes"];
    fs::create_dir(node.attachments()).unwrap();
    for name in foreign {
        fs::write(node.attachments().join(name), "").unwrap();
    }
    // Not even where the plugin would put a file of its own.
    fs::create_dir(node.attachments().join(".new.1")).unwrap();
    let pod = Namespace::new();
    let added = node.add("one", &pod);
    assert_eq!(added.ips(), ["10.244.0.1", "fd00:244::1"]);
    assert!(node.check("one", &pod, &added).success);
    assert!(gc(&node, &[]).success);
    assert_eq!(
        node.records(),
        [".keep", ".new", ".new.1", "10.244.0.1.bak", "notes"]
    );
}

#[test]
fn netns_every_verb_names_what_stands_in_the_place_of_the_records() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS);
    let pod = Namespace::new();
    let added = node.add("one", &pod);
    fs::remove_dir_all(node.attachments()).unwrap();
    fs::write(node.attachments(), "").unwrap();
    let place = node.attachments().display().to_string();
    for answer in [
        node.add("two", &Namespace::new()),
        node.check("one", &pod, &added),
        node.del("one", &pod.path()),
        gc(&node, &["one"]),
        status(&node),
    ] {
        assert_eq!(answer.code(), 5);
        assert!(answer.log.contains(&place), "{answer:?}");
    }
    assert!(node.namespace.pings("10.244.0.1"), "the pod lives");
}

#[test]
fn netns_what_stands_in_the_place_of_the_lock_is_named() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS);
    fs::create_dir(node.run_dir().join("lock")).unwrap();
    refuses(&node, "lock", "take the lock", "Is a directory");
}

#[test]
fn netns_a_damaged_node_json_is_named_and_who_writes_it_anew() {
    if skipped() {
        return;
    }
    let node = Node::without_config();
    let file = node.run_dir().join("node.json");
    for text in ["", "{", r#"{"version":1}"#, "[]"] {
        fs::write(&file, text).unwrap();
        for answer in [node.add("one", &Namespace::new()), status(&node)] {
            assert_eq!(answer.code(), 6, "{text:?}");
            assert_eq!(
                answer.message(),
                "parse node.json; netweft-agent writes it anew within a minute, and its log says if it cannot",
            );
        }
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    for answer in [node.add("one", &Namespace::new()), status(&node)] {
        assert_eq!((answer.code(), answer.message()), (5, "read node.json"));
    }
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
