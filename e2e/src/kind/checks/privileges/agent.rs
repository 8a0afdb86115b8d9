//! The agent's.

use std::time::Duration;

use crate::kind::checks::Cluster;
use crate::kind::checks::privileges::{Program, Work};

const AGENT: Program = Program {
    set: "netweft-agent",
    process: "netweft-agent",
    works: &[
        Work {
            name: "plugin",
            rob: "rm -f /opt/cni/bin/netweft",
            see: "test -x /opt/cni/bin/netweft",
        },
        Work {
            name: "configuration of the runtime",
            rob: "rm -f /etc/cni/net.d/10-netweft.conflist",
            see: "test -s /etc/cni/net.d/10-netweft.conflist",
        },
        Work {
            name: "blocks for the plugin",
            rob: "rm -f /run/netweft/node.json",
            see: "test -s /run/netweft/node.json",
        },
        Work {
            name: "tunnel",
            rob: "ip link delete nw-vx4096 || true",
            see: "ip link show nw-vx4096",
        },
        Work {
            name: "forwarding",
            rob: "sysctl -qw net.ipv4.ip_forward=0",
            see: "test $(cat /proc/sys/net/ipv4/ip_forward) = 1",
        },
    ],
    lost: |privilege| {
        Some(match privilege {
            "hostNetwork" | "the token" | "NET_ADMIN" => "tunnel",
            "the user 0" | "the volume run" => "blocks for the plugin",
            "the volume cni-bin" => "plugin",
            "the volume cni-conf" => "configuration of the runtime",
            "the volume sysctl" => "forwarding",
            _ => return None,
        })
    },
    away: Duration::from_secs(20),
};

pub fn agent_needs_each_of_its_privileges(_: &mut Cluster) -> anyhow::Result<()> {
    AGENT.needs_every_privilege()
}
