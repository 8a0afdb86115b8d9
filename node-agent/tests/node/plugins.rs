//! Plugins that somebody takes away or changes are put back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::lab::{Node, ROUTED, built_plugin, until};

/// A node whose agent looks after plugins that are called `netweft` and `netweft-portmap`.
fn node() -> Node {
    let mut node = Node::new(ROUTED);
    fs::create_dir(node.path("image")).unwrap();
    for name in ["netweft", "netweft-portmap", "netweft-loopback"] {
        fs::copy(built_plugin(), node.path("image").join(name)).unwrap();
    }
    node.install(&node.path("image"));
    node.installed = true;
    let from = format!("NETWEFT_PLUGINS={}", node.path("image").display());
    let to = format!("NETWEFT_CNI_BIN_DIR={}", node.path("bin").display());
    node.start_under(&["env", &from, &to]);
    node.wait_until_ready();
    node
}

fn whole(node: &Node, name: &str) -> bool {
    let read = |folder: &str| fs::read(node.path(folder).join(name)).ok();
    read("bin").is_some() && read("bin") == read("image")
}

fn back(node: &Node, name: &str) {
    let started = Instant::now();
    until("the plugin to be back", || {
        whole(node, name).then_some(()).ok_or(node.log())
    });
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn netns_deleted_or_changed_plugins_are_restored() {
    let node = node();
    for name in ["netweft", "netweft-portmap"] {
        let file = node.path("bin").join(name);
        fs::remove_file(&file).unwrap();
        back(&node, name);
        fs::write(&file, "another").unwrap();
        back(&node, name);
    }
    let loopback = node.path("bin/loopback");
    fs::remove_file(&loopback).unwrap();
    until("the link for runtimes to be back", || {
        fs::read_link(&loopback).map_err(|error| error.to_string())
    });
    fs::set_permissions(node.path("bin/netweft"), fs::Permissions::from_mode(0o644)).unwrap();
    until("the mode to be right", || {
        let mode = fs::metadata(node.path("bin/netweft"))
            .unwrap()
            .permissions()
            .mode();
        (mode & 0o7777 == 0o755)
            .then_some(())
            .ok_or(format!("{mode:o}"))
    });
    node.wait_until_ready();
    assert!(node.add("one").answers(&node.namespace));
    // What comes in bursts is told with a delay.
    until("the repairs to be told", || {
        let drift = node.status()?.drift.ok_or("none is told")?;
        let told = drift.message.contains("bin/netweft");
        told.then_some(()).ok_or(drift.message)
    });
}

#[test]
fn netns_plugin_restore_failure_is_reported_until_resolved() {
    let node = node();
    let file = node.path("bin/netweft");
    fs::remove_file(&file).unwrap();
    back(&node, "netweft");
    let away = node.path("image/netweft");
    let aside: &Path = &node.path("netweft-away");
    fs::rename(&away, aside).unwrap();
    fs::create_dir(&away).unwrap();
    fs::remove_file(&file).unwrap();
    let said = node.wait_until_it_says("ProgrammingFailed");
    assert!(said.contains("bin/netweft"), "{said}");
    let (found, code) = node.check();
    assert_eq!(
        code,
        Some(0),
        "without a Node's name only pods are looked at: {found:?}"
    );
    fs::remove_dir(&away).unwrap();
    fs::rename(aside, away).unwrap();
    node.wait_until_ready();
    assert!(whole(&node, "netweft"));
}
