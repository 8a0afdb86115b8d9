//! The privileges of BIRD. The agent keeps running and configures BIRD.

use std::time::Duration;

use crate::kind::checks::Cluster;
use crate::kind::checks::privileges::{Program, Work};
use crate::kind::host::{nodes, on};

const BIRD: Program = Program {
    set: "netweft-bird",
    process: "bird",
    works: &[
        Work {
            name: "control socket",
            rob: "rm -f /run/netweft/bird/bird.ctl",
            see: "test -S /run/netweft/bird/bird.ctl",
        },
        Work {
            name: "learnt routes",
            rob: "ip route flush proto 12",
            see: "ip route show proto 12 | grep -q .",
        },
        Work {
            name: "listener at the port of BGP",
            rob: "true", // it has gone with BIRD
            see: "ss -Hltn 'sport = 179' | grep -q .",
        },
    ],
    lost: |privilege| {
        Some(match privilege {
            "the user 0" | "the volume run" => "control socket",
            // Without a configuration BIRD ends, but leaves a socket behind.
            "hostNetwork" | "NET_ADMIN" | "the volume base" => "learnt routes",
            "NET_BIND_SERVICE" => "listener at the port of BGP",
            _ => return None,
        })
    },
    away: Duration::from_secs(30),
};

pub fn bird_needs_each_of_its_privileges(_: &mut Cluster) -> anyhow::Result<()> {
    // A container engine lets its containers bind every port; an ordinary machine does not.
    let before = unprivileged_ports("1024")?;
    let outcome = BIRD.needs_every_privilege();
    unprivileged_ports(before.trim())?;
    outcome
}

/// Set the first port that needs no privilege, on all nodes. Returns what it was.
fn unprivileged_ports(first: &str) -> anyhow::Result<String> {
    let parameter = "net.ipv4.ip_unprivileged_port_start";
    let mut before = String::new();
    for node in nodes()? {
        before = on(&node, &["sysctl", "-n", parameter])?;
        on(&node, &["sysctl", "-qw", &format!("{parameter}={first}")])?;
    }
    Ok(before)
}
