//! The privileges of the agent.

use std::time::Duration;

use crate::kind::checks::Cluster;
use crate::kind::checks::privileges::{Program, Resource};

const AGENT: Program = Program {
    set: "netweft-agent",
    process: "netweft-agent",
    resources: &[
        Resource {
            name: "plugin",
            delete: "rm -f /opt/cni/bin/netweft",
            exists: "test -x /opt/cni/bin/netweft",
        },
        Resource {
            name: "configuration of the runtime",
            delete: "rm -f /etc/cni/net.d/10-netweft.conflist",
            exists: "test -s /etc/cni/net.d/10-netweft.conflist",
        },
        Resource {
            name: "blocks for the plugin",
            delete: "rm -f /run/netweft/node.json",
            exists: "test -s /run/netweft/node.json",
        },
        Resource {
            name: "tunnel",
            delete: "ip link delete nw-vx4096 || true",
            exists: "ip link show nw-vx4096",
        },
        Resource {
            name: "forwarding",
            delete: "sysctl -qw net.ipv4.ip_forward=0",
            exists: "test $(cat /proc/sys/net/ipv4/ip_forward) = 1",
        },
    ],
    missing_without: |privilege| {
        Some(match privilege {
            "hostNetwork" | "the service account token" | "NET_ADMIN" => "tunnel",
            "the user 0" | "the volume run" => "blocks for the plugin",
            "the volume cni-bin" => "plugin",
            "the volume cni-conf" => "configuration of the runtime",
            "the volume sysctl" => "forwarding",
            _ => return None,
        })
    },
    timeout: Duration::from_secs(20),
};

pub fn agent_needs_each_of_its_privileges(_: &mut Cluster) -> anyhow::Result<()> {
    AGENT.check_every_privilege()
}
