//! Nodes on which IPv6 is disabled for new links, for all links, or in the kernel, with pools of both families.

use std::fs;
use std::os::unix::fs::symlink;

use super::lab::{BRIDGED, Families, Node, ROUTED, wait_for};

/// Disables IPv6 as hardening guides do: for new links and, if `all`, for existing links.
fn disable_ipv6(node: &Node, all: bool) {
    for of in ["default", "all"].iter().take(1 + usize::from(all)) {
        set(node, &format!("net.ipv6.conf.{of}.disable_ipv6=1"));
    }
}

fn set(node: &Node, parameter: &str) {
    let done = node.namespace.command(&format!("sysctl -w {parameter}"));
    assert!(done.status.success(), "{done:?}");
}

fn has_addresses(node: &Node, link: &str) {
    wait_for("addresses of both families", || {
        let shown = node.namespace.command(&format!("ip address show {link}"));
        let addresses = String::from_utf8(shown.stdout).unwrap();
        let both = addresses.contains("inet ") && addresses.contains("inet6 ");
        both.then_some(()).ok_or(addresses)
    });
}

#[test]
fn netns_dual_stack_pods_work_with_ipv6_disabled_at_start() {
    for all in [false, true] {
        for pools in [ROUTED, BRIDGED] {
            let mut node = Node::new(pools.of(Families::Both));
            disable_ipv6(&node, all);
            node.start();
            node.wait_until_ready();
            has_addresses(&node, "nw-vx4096");
            let pod = node.add("one");
            assert_eq!(pod.addresses.len(), 2);
            assert!(pod.is_reachable_from(&node.namespace));
        }
    }
}

#[test]
fn netns_dual_stack_pods_keep_ipv6_when_disabled_later() {
    for all in [false, true] {
        let node = Node::ready(ROUTED.of(Families::Both));
        let pod = node.add("one");
        disable_ipv6(&node, all);
        node.namespace.ip("link delete nw-vx4096");
        has_addresses(&node, "nw-vx4096");
        node.wait_until_ready();
        wait_for("the pod to reply", || {
            pod.is_reachable_from(&node.namespace)
                .then_some(())
                .ok_or(node.log())
        });
        let other = node.add("two");
        assert!(other.is_reachable_from(&node.namespace));
        node.wait_until_clean();
    }
}

/// The link of a new pod forwards packets although forwarding is disabled for new links.
#[test]
fn netns_pod_links_forward_despite_default_forwarding_off() {
    let node = Node::ready(ROUTED);
    set(&node, "net.ipv4.conf.default.forwarding=0");
    let [one, other] = ["one", "two"].map(|name| node.add(name));
    let ip = &other.addresses[0];
    assert!(one.space.pings(&ip.to_string()));
    node.namespace.ip("link delete nw-vx4096");
    node.wait_until_ready();
    wait_for("the tunnel to forward", || {
        let value = node
            .namespace
            .command("cat /proc/sys/net/ipv4/conf/nw-vx4096/forwarding");
        (value.stdout == b"1\n")
            .then_some(())
            .ok_or(format!("{value:?}"))
    });
}

/// systemd-networkd can disable forwarding on a link while it is enabled on the node.
#[test]
fn netns_uplink_forwarding_is_enabled() {
    let mut node = Node::new(ROUTED.of(Families::Both));
    let off = ["ipv4", "ipv6"].map(|family| format!("net.{family}.conf.ens7.forwarding=0"));
    set(&node, "net.ipv4.ip_forward=1");
    set(&node, "net.ipv6.conf.all.forwarding=1");
    off.iter().for_each(|off| set(&node, off));
    node.start();
    node.wait_until_ready();
    let forwards = |node: &Node| {
        let files =
            "/proc/sys/net/ipv4/conf/ens7/forwarding /proc/sys/net/ipv6/conf/ens7/forwarding";
        let values = node.namespace.command(&format!("cat {files}")).stdout;
        (values == b"1\n1\n")
            .then_some(())
            .ok_or(format!("{values:?}"))
    };
    wait_for("the uplink to forward", || forwards(&node));
    off.iter().for_each(|off| set(&node, off));
    wait_for("the uplink to forward again", || forwards(&node));
}

/// The sysctl directory of a kernel with the boot parameter `ipv6.disable=1`.
#[test]
fn netns_kernel_without_ipv6_gives_pods_ipv4_only() {
    let mut node = Node::new(ROUTED.of(Families::Both));
    fs::create_dir(node.path("sysctl")).unwrap();
    symlink("/proc/sys/net/ipv4", node.path("sysctl/ipv4")).unwrap();
    let dir = format!("NETWEFT_SYSCTL_DIR={}", node.path("sysctl").display());
    node.start_under(&["env", &dir]);
    let message = node.wait_for_reason("Invalid");
    assert!(
        message.starts_with("IPPool routed-six is not programmed: this node's kernel has no IPv6"),
        "{message}"
    );
    let pod = node.add("one");
    assert_eq!(pod.addresses.len(), 1);
    assert!(pod.is_reachable_from(&node.namespace));
    let routes = node.namespace.ip("-6 route");
    assert!(!routes.contains("proto 78"), "{routes}");
}
