//! The privileges of the udp relay. The agent keeps running and configures its peers.

use std::time::Duration;

use crate::kind::checks::Cluster;
use crate::kind::checks::privileges::{Program, Work};

const RELAY: Program = Program {
    set: "netweft-udp-relay",
    process: "netweft-udp-relay",
    works: &[
        Work {
            name: "tunnel",
            rob: "ip link delete nw-udp8285 || true",
            see: "ip link show nw-udp8285",
        },
        Work {
            name: "handover socket",
            rob: "rm -f /run/netweft/udp-relay.sock",
            see: "test -S /run/netweft/udp-relay.sock",
        },
    ],
    lost: |privilege| {
        Some(match privilege {
            "hostNetwork" | "NET_ADMIN" | "the volume tun" => "tunnel",
            "the user 0" | "the volume run" => "handover socket",
            _ => return None,
        })
    },
    away: Duration::from_secs(20),
};

pub fn relay_needs_each_of_its_privileges(_: &mut Cluster) -> anyhow::Result<()> {
    RELAY.needs_every_privilege()
}
