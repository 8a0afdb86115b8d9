//! The privileges of the udp relay. The agent keeps running and configures its peers.

use std::time::Duration;

use crate::kind::checks::Cluster;
use crate::kind::checks::privileges::{Program, Resource};

const RELAY: Program = Program {
    set: "netweft-udp-relay",
    process: "netweft-udp-relay",
    resources: &[
        Resource {
            name: "tunnel",
            delete: "ip link delete nw-udp8285 || true",
            exists: "ip link show nw-udp8285",
        },
        Resource {
            name: "handover socket",
            delete: "rm -f /run/netweft/udp-relay.sock",
            exists: "test -S /run/netweft/udp-relay.sock",
        },
    ],
    missing_without: |privilege| {
        Some(match privilege {
            "hostNetwork" | "NET_ADMIN" | "the volume tun" => "tunnel",
            "the user 0" | "the volume run" => "handover socket",
            _ => return None,
        })
    },
    timeout: Duration::from_secs(20),
};

pub fn relay_needs_each_of_its_privileges(_: &mut Cluster) -> anyhow::Result<()> {
    RELAY.check_every_privilege()
}
