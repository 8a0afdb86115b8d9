//! The reasons and messages of the condition Ready for real causes, and that the condition recovers when the cause ends.

use std::fs;

use super::lab::{BRIDGED, FAMILIES, Node, ROUTED, network, wait_for};

/// The blocks of another node.
const REMOTE: [&str; 2] = ["10.244.4.0/22", "fd00:244::400/118"];

fn remote(node: &Node) -> impl Iterator<Item = &'static str> {
    let addresses = node.addresses();
    let has = |block: &&str| {
        addresses
            .iter()
            .any(|ip| ip.contains(':') == block.contains(':'))
    };
    REMOTE.into_iter().filter(has)
}

#[test]
fn netns_foreign_route_to_block_is_reported_and_kept() {
    for families in FAMILIES {
        let node = Node::ready(ROUTED.of(families));
        for block in remote(&node) {
            let foreign = format!("blackhole {block} metric 20 proto 4");
            node.namespace.ip(&format!("route replace {foreign}"));
            let message = node.wait_for_reason("ForeignObject");
            let expected = format!("route {block} metric 20");
            assert!(message.starts_with(&expected), "{message}");
            assert!(
                message.contains("of another program (protocol 4) prevents route"),
                "{message}"
            );
            node.namespace.ip(&format!("route delete {foreign}"));
            node.wait_until_ready();
            let family = if block.contains(':') { "-6" } else { "-4" };
            let route = node.namespace.ip(&format!("{family} route show {block}"));
            assert!(route.contains("dev nw-vx4096 proto 78"), "{route}");
        }
    }
}

#[test]
fn netns_foreign_route_to_pod_is_reported_and_kept() {
    for families in FAMILIES {
        let node = Node::ready(ROUTED.of(families));
        let pod = node.add("one");
        for ip in &pod.addresses {
            let foreign = format!("blackhole {ip} metric 20 proto 4");
            node.namespace.ip(&format!("route replace {foreign}"));
            let message = node.wait_for_reason("ForeignObject");
            assert!(message.starts_with(&format!("route {ip}/")), "{message}");
            assert!(
                message.contains("of another program (protocol 4) prevents route"),
                "{message}"
            );
            node.namespace.ip(&format!("route delete {foreign}"));
            node.wait_until_ready();
            node.wait_until_clean();
            assert!(pod.is_reachable_from(&node.namespace));
        }
    }
}

#[test]
fn netns_conflist_sorting_before_netweft_is_reported() {
    let node = Node::ready(ROUTED);
    let other = node.path("cni/05-other.conflist");
    fs::write(&other, "{}").unwrap();
    node.trigger_reconcile();
    let message = node.wait_for_reason("ForeignObject");
    assert!(
        message.ends_with("cni/05-other.conflist sorts before 10-netweft.conflist, so the container runtime uses it instead: remove it"),
        "{message}"
    );
    fs::remove_file(other).unwrap();
    node.trigger_reconcile();
    node.wait_until_ready();
}

/// Links with names of netweft belong to netweft.
#[test]
fn netns_link_of_wrong_kind_with_own_name_is_replaced() {
    let mut node = Node::new(BRIDGED);
    for other in ["nw-vx4096 type bridge", "nw-br0 type veth peer name x"] {
        node.namespace.ip(&format!("link add {other}"));
    }
    node.start();
    node.wait_until_ready();
    for (name, kind) in [("nw-vx4096", "vxlan id 4096"), ("nw-br0", "bridge")] {
        let link = node.namespace.ip(&format!("-details link show {name}"));
        assert!(link.contains(kind), "{link}");
    }
}

#[test]
fn netns_vni_used_by_other_link_fails_until_free() {
    for families in FAMILIES {
        let mut node = Node::new(ROUTED.of(families));
        let local = node.addresses()[0];
        let other = format!("link add other type vxlan id 4096 dstport 4789 local {local}");
        node.namespace.ip(&other);
        node.start();
        let message = node.wait_for_reason("ProgrammingFailed");
        let expected = "link nw-vx4096 is missing: VNI 4096 on UDP port 4789 is used on this node by link other; ";
        assert!(message.starts_with(expected), "{message}");
        assert!(!node.path("cni/10-netweft.conflist").exists());
        node.namespace.ip("link delete other");
        node.wait_until_ready();
        assert!(node.path("cni/10-netweft.conflist").exists());
    }
}

#[test]
fn netns_read_only_sysctls_fail_until_writable() {
    for families in FAMILIES {
        let mut node = Node::new(ROUTED.of(families));
        let read_only = "mount -o bind,ro /proc/sys /proc/sys && exec \"$@\"";
        node.start_under(&[
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            read_only,
            "sh",
        ]);
        let message = node.wait_for_reason("ProgrammingFailed");
        assert!(
            message.contains("set /proc/sys/net/ipv") && message.contains("Read-only file system"),
            "{message}"
        );
        assert!(!node.path("cni/10-netweft.conflist").exists());
        let writable = format!(
            "nsenter --mount=/proc/{}/ns/mnt mount -o remount,bind,rw /proc/sys",
            node.agent_id()
        );
        assert!(node.namespace.command(&writable).status.success());
        node.wait_until_ready();
    }
}

#[test]
fn netns_missing_node_address_is_named_and_keeps_tunnel() {
    for families in FAMILIES {
        let node = Node::ready(ROUTED.of(families));
        let ip = node.addresses()[0];
        let (length, more) = if ip.contains(':') {
            (64, "nodad")
        } else {
            (24, "")
        };
        let address = format!("{ip}/{length} dev ens7");
        let tunnel = || node.namespace.ip("link show nw-vx4096");
        let before = tunnel();
        node.namespace.ip(&format!("address delete {address}"));
        let message = node.wait_for_reason("ProgrammingFailed");
        assert!(
            message.starts_with(&format!(
                "no link of this node has the node address {ip}; compare"
            )),
            "{message}"
        );
        assert_eq!(tunnel(), before);
        node.namespace.ip(&format!("address add {address} {more}"));
        node.wait_until_ready();
    }
}

#[test]
fn netns_unwritable_output_files_are_reported_until_writable() {
    for file in ["run/node.json", "cni/10-netweft.conflist"] {
        let mut node = Node::new(ROUTED);
        fs::create_dir_all(node.path(file).join("blocker")).unwrap();
        node.start();
        let message = node.wait_for_reason("ProgrammingFailed");
        let expected = format!("write {}: ", node.path(file).display());
        assert!(message.starts_with(&expected), "{message}");
        fs::remove_dir_all(node.path(file)).unwrap();
        node.wait_until_ready();
        assert!(node.path(file).is_file());
    }
}

#[test]
fn netns_node_without_nft_takes_no_pods() {
    let mut node = Node::new(ROUTED);
    let programs = node.path("programs");
    fs::create_dir(&programs).unwrap();
    let path = format!("PATH={}", programs.display());
    node.start_under(&["env", &path]);
    let message = node.wait_for_reason("ProgrammingFailed");
    let expected = "run nft -s list table inet netweft: No such file";
    assert!(message.starts_with(expected), "{message}");
    assert!(!node.path("cni/10-netweft.conflist").exists());
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .map(|folder| folder.join("nft"))
        .find(|file| file.exists());
    std::os::unix::fs::symlink(found.unwrap(), programs.join("nft")).unwrap();
    node.wait_until_ready();
}

#[test]
fn netns_block_of_other_node_is_omitted_and_reported() {
    let mut node = Node::new(ROUTED);
    let (own, backup) = (
        node.path("objects/subnet-routed-one.yaml"),
        node.path("own"),
    );
    let of_other_node = fs::read_to_string(&own).unwrap();
    let of_other_node = of_other_node.replace("node: one", "node: two");
    let of_other_node = of_other_node.replace("ipv4: 192.0.2.1", "ipv4: 192.0.2.2");
    fs::rename(&own, &backup).unwrap();
    let message = "block 10.244.0.0/22 is not programmed: the NodeNetwork lists it, but NodeSubnet 10-244-0-0-22 does not name this node";
    node.start();
    assert_eq!(
        node.wait_for_reason("Invalid"),
        message,
        "without a NodeSubnet"
    );
    fs::write(node.path("temporary"), of_other_node).unwrap();
    fs::rename(node.path("temporary"), &own).unwrap();
    wait_for("the route to the other node", || {
        let route = node.namespace.ip("route show 10.244.0.0/22");
        route.contains("dev nw-vx4096").then_some(()).ok_or(route)
    });
    assert_eq!(node.wait_for_reason("Invalid"), message, "of another node");
    assert!(!node.path("cni/10-netweft.conflist").exists());
    fs::rename(backup, own).unwrap();
    node.wait_until_ready();
}

#[test]
fn netns_node_without_block_takes_pods_after_assignment() {
    let mut node = Node::new(ROUTED);
    let names = ["routed".to_owned()];
    node.write_object("network.yaml", &network(ROUTED, &[], &names));
    node.start();
    let message = node.wait_for_reason("NoSubnet");
    assert!(
        message.starts_with("no IPPool gives this node a block"),
        "{message}"
    );
    assert!(!node.path("cni/10-netweft.conflist").exists());
    let blocks = ["10.244.0.0/22".to_owned()];
    node.write_object("network.yaml", &network(ROUTED, &blocks, &names));
    node.wait_until_ready();
    assert!(node.add("one").is_reachable_from(&node.namespace));
}
