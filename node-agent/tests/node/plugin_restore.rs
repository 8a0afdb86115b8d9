//! Deleted and changed plugins are restored.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::lab::{Node, ROUTED, built_plugin, wait_for};

/// A node whose agent restores plugins.
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

fn is_intact(node: &Node, name: &str) -> bool {
    let read = |folder: &str| fs::read(node.path(folder).join(name)).ok();
    read("bin").is_some() && read("bin") == read("image")
}

fn wait_until_restored(node: &Node, name: &str) {
    let started = Instant::now();
    wait_for("the plugin", || {
        is_intact(node, name).then_some(()).ok_or(node.log())
    });
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn netns_deleted_or_changed_plugins_are_restored() {
    let node = node();
    for name in ["netweft", "netweft-portmap"] {
        let file = node.path("bin").join(name);
        fs::remove_file(&file).unwrap();
        wait_until_restored(&node, name);
        fs::write(&file, "another").unwrap();
        wait_until_restored(&node, name);
    }
    let loopback = node.path("bin/loopback");
    fs::remove_file(&loopback).unwrap();
    wait_for("the loopback link", || {
        fs::read_link(&loopback).map_err(|error| error.to_string())
    });
    fs::set_permissions(node.path("bin/netweft"), fs::Permissions::from_mode(0o644)).unwrap();
    wait_for("the file mode", || {
        let mode = fs::metadata(node.path("bin/netweft"))
            .unwrap()
            .permissions()
            .mode();
        (mode & 0o7777 == 0o755)
            .then_some(())
            .ok_or(format!("{mode:o}"))
    });
    node.wait_until_ready();
    assert!(node.add("one").is_reachable_from(&node.namespace));
    // Drift is published with a delay.
    wait_for("the repairs in the status", || {
        let drift = node.status()?.drift.ok_or("no drift")?;
        let is_reported = drift.message.contains("bin/netweft");
        is_reported.then_some(()).ok_or(drift.message)
    });
}

#[test]
fn netns_plugin_restore_failure_is_reported_until_resolved() {
    let node = node();
    let file = node.path("bin/netweft");
    fs::remove_file(&file).unwrap();
    wait_until_restored(&node, "netweft");
    let source = node.path("image/netweft");
    let backup: &Path = &node.path("netweft-backup");
    fs::rename(&source, backup).unwrap();
    fs::create_dir(&source).unwrap();
    fs::remove_file(&file).unwrap();
    let message = node.wait_for_reason("ProgrammingFailed");
    assert!(message.contains("bin/netweft"), "{message}");
    let (found, code) = node.check();
    assert_eq!(
        code,
        Some(0),
        "without the name of the Node only pods are checked: {found:?}"
    );
    fs::remove_dir(&source).unwrap();
    fs::rename(backup, source).unwrap();
    node.wait_until_ready();
    assert!(is_intact(&node, "netweft"));
}
