//! The privileges of BIRD. The agent keeps running and configures BIRD.

use std::time::Duration;

use crate::kind::checks::Cluster;
use crate::kind::checks::privileges::{Program, Resource};
use crate::kind::host::{nodes, on};

const BIRD: Program = Program {
    set: "netweft-bird",
    process: "bird",
    resources: &[
        Resource {
            name: "control socket",
            delete: "rm -f /run/netweft/bird/bird.ctl",
            exists: "test -S /run/netweft/bird/bird.ctl",
        },
        Resource {
            name: "BGP routes",
            delete: "ip route flush proto 12",
            exists: "ip route show proto 12 | grep -q .",
        },
        Resource {
            name: "listener on the BGP port",
            delete: "true", // the listener ends with BIRD
            exists: "ss -Hltn 'sport = 179' | grep -q .",
        },
    ],
    missing_without: |privilege| {
        Some(match privilege {
            "the user 0" | "the volume run" => "control socket",
            // Without a configuration BIRD exits, but its socket remains.
            "hostNetwork" | "NET_ADMIN" | "the volume base" => "BGP routes",
            "NET_BIND_SERVICE" => "listener on the BGP port",
            _ => return None,
        })
    },
    timeout: Duration::from_secs(30),
};

pub fn bird_needs_each_of_its_privileges(_: &mut Cluster) -> anyhow::Result<()> {
    // docker sets ip_unprivileged_port_start to 0 in its containers. The default of the kernel is 1024.
    let before = set_unprivileged_port_start("1024")?;
    let outcome = BIRD.check_every_privilege();
    set_unprivileged_port_start(before.trim())?;
    outcome
}

/// Set the first port that needs no privilege on all nodes. Returns the previous value.
fn set_unprivileged_port_start(first: &str) -> anyhow::Result<String> {
    let parameter = "net.ipv4.ip_unprivileged_port_start";
    let mut before = String::new();
    for node in nodes()? {
        before = on(&node, &["sysctl", "-n", parameter])?;
        on(&node, &["sysctl", "-qw", &format!("{parameter}={first}")])?;
    }
    Ok(before)
}
