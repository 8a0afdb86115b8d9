//! Unreadable records, and foreign files in the directory of records.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::netns_node::{Namespace, Node, skipped};
use super::{BLOCKS, gc, refuses, status};

/// Creates a file that has the name of an address and is no record.
fn create_unreadable_record(path: &Path, kind: &str) {
    match kind {
        "empty" => fs::write(path, "").unwrap(),
        "truncated" => fs::write(path, r#"{"version":1,"owner":{"containerID":"x""#).unwrap(),
        "other JSON" => fs::write(path, r#"["no record"]"#).unwrap(),
        "binary" => fs::write(path, [0xff, 0xfe, 0]).unwrap(),
        "directory" => fs::create_dir(path).unwrap(),
        "dangling symbolic link" => symlink("/nowhere", path).unwrap(),
        other => panic!("{other}"),
    }
}

#[test]
fn netns_address_of_unreadable_record_is_never_reused_or_freed() {
    if skipped() {
        return;
    }
    for kind in [
        "empty",
        "truncated",
        "other JSON",
        "binary",
        "directory",
        "dangling symbolic link",
    ] {
        let node = Node::for_two_pods();
        fs::create_dir(node.attachments()).unwrap();
        create_unreadable_record(&node.attachments().join("10.244.0.2"), kind);
        let pods = [Namespace::new(), Namespace::new()];
        let added = node.add("one", &pods[0]);
        assert_eq!(added.ips(), ["10.244.0.3"], "{kind}");
        assert_eq!(node.add("two", &pods[1]).code(), 11, "{kind}");
        assert!(node.check("one", &pods[0], &added).success, "{kind}");
        assert!(status(&node).success, "{kind}");
        assert!(gc(&node, &["one"]).success, "{kind}");
        assert!(node.del("one", &pods[0].path()).success, "{kind}");
        assert_eq!(node.records(), ["10.244.0.2"], "{kind}");
    }
}

#[test]
fn netns_address_in_other_spelling_is_not_allocated() {
    if skipped() {
        return;
    }
    let node = Node::new(&["fd00:244::/126"]);
    fs::create_dir(node.attachments()).unwrap();
    fs::write(node.attachments().join("FD00:244:0::2"), "").unwrap();
    assert_eq!(node.add("one", &Namespace::new()).ips(), ["fd00:244::3"]);
}

#[test]
fn netns_full_block_error_names_unreadable_records() {
    if skipped() {
        return;
    }
    let node = Node::for_two_pods();
    fs::create_dir(node.attachments()).unwrap();
    fs::write(node.attachments().join("10.244.0.3"), "").unwrap();
    let pods = [Namespace::new(), Namespace::new()];
    assert!(node.add("one", &pods[0]).success);
    let refused = node.add("two", &pods[1]);
    let expected = "; the attachment records of 10.244.0.3 cannot be read, and these addresses stay allocated: \
                    netweft-agent check prints the reason";
    assert!(refused.message().ends_with(expected), "{refused:?}");
}

#[test]
fn netns_del_and_gc_name_unreadable_record() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS);
    fs::create_dir(node.attachments()).unwrap();
    fs::write(node.attachments().join("10.244.0.2"), "").unwrap();
    for answer in [node.del("one", ""), gc(&node, &[])] {
        assert!(answer.success);
        assert!(
            answer.log.contains(
                "attachment record 10.244.0.2 cannot be read, and its address stays allocated: "
            ),
            "{answer:?}"
        );
    }
}

#[test]
fn netns_check_of_pod_with_unreadable_record_names_record() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS[..1]);
    let pod = Namespace::new();
    let added = node.add("one", &pod);
    fs::write(node.attachments().join("10.244.0.2"), "{").unwrap();
    let found = node.check("one", &pod, &added);
    assert_eq!(found.code(), 100);
    for text in [
        "there is no attachment record for interface eth0 of container one",
        "attachment record 10.244.0.2 cannot be read",
    ] {
        assert!(found.message().contains(text), "{text}: {found:?}");
    }
}

#[test]
fn netns_foreign_files_among_records_are_ignored_and_kept() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS);
    let foreign = [".keep", ".new", "10.244.0.2.bak", "notes"];
    fs::create_dir(node.attachments()).unwrap();
    for name in foreign {
        fs::write(node.attachments().join(name), "").unwrap();
    }
    // A directory with the name of a temporary file of the plugin.
    fs::create_dir(node.attachments().join(".new.1")).unwrap();
    let pod = Namespace::new();
    let added = node.add("one", &pod);
    assert_eq!(added.ips(), ["10.244.0.2", "fd00:244::2"]);
    assert!(node.check("one", &pod, &added).success);
    assert!(gc(&node, &[]).success);
    assert_eq!(
        node.records(),
        [".keep", ".new", ".new.1", "10.244.0.2.bak", "notes"]
    );
}

#[test]
fn netns_every_command_names_file_in_place_of_records_dir() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS);
    let pod = Namespace::new();
    let added = node.add("one", &pod);
    fs::remove_dir_all(node.attachments()).unwrap();
    fs::write(node.attachments(), "").unwrap();
    let path = node.attachments().display().to_string();
    for answer in [
        node.add("two", &Namespace::new()),
        node.check("one", &pod, &added),
        node.del("one", &pod.path()),
        gc(&node, &["one"]),
        status(&node),
    ] {
        assert_eq!(answer.code(), 5);
        assert!(answer.log.contains(&path), "{answer:?}");
    }
    assert!(node.namespace.pings("10.244.0.2"), "the pod is reachable");
}

#[test]
fn netns_directory_in_place_of_lock_is_named() {
    if skipped() {
        return;
    }
    let node = Node::new(&BLOCKS);
    fs::create_dir(node.run_dir().join("lock")).unwrap();
    refuses(
        &node,
        "lock",
        "a file of another type has this name: remove it",
        "Is a directory",
    );
}

#[test]
fn netns_damaged_node_config_error_names_file_and_writer() {
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
                "parse node.json: netweft-agent replaces the file within a minute; the log of netweft-agent has the reason \
                 if this error persists",
            );
        }
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    for answer in [node.add("one", &Namespace::new()), status(&node)] {
        let expected = "read node.json; a file of another type has this name: remove it";
        assert_eq!((answer.code(), answer.message()), (5, expected));
    }
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
