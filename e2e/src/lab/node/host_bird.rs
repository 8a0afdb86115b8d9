//! A second BIRD on a node, which belongs to the node's owner. Its kernel routes must not change.

use std::path::Path;

use anyhow::ensure;

use crate::harness::poll::until;
use crate::harness::run_dir::Run;
use crate::lab::node::Node;

/// Exports static routes to the kernel with BIRD's default metric, and imports none.
const CONFIGURATION: &str = "router id 0.0.0.2;
protocol device {}
protocol static s4 { ipv4; route 198.19.0.0/24 blackhole; }
protocol static s6 { ipv6; route 2001:db8:beef::/48 blackhole; }
protocol kernel k4 { ipv4 { import none; export all; }; }
protocol kernel k6 { ipv6 { import none; export all; }; }
";
const ROUTES: [(&str, &str); 2] = [("-4", "198.19.0.0/24"), ("-6", "2001:db8:beef::/48")];

/// Starts this BIRD and waits for its routes.
pub fn start(run: &mut Run, node: &Node, programs: &Path) -> anyhow::Result<()> {
    let configuration = run.folder().join("host-bird.conf");
    std::fs::write(&configuration, CONFIGURATION)?;
    let mut command = node.namespace.command(programs.join("bird"));
    command.arg("-f").arg("-c").arg(configuration);
    command.args(["-s", "/run/host-bird.ctl"]);
    let log = run.folder().join(format!("{}-host-bird.log", node.name));
    node.namespace.start(run, &mut command, &log)?;
    let deadline = std::time::Duration::from_secs(10);
    until("the routes of the owner's BIRD", deadline, || check(node))
}

/// The routes of this BIRD are in the kernel.
pub fn check(node: &Node) -> anyhow::Result<()> {
    for (family, route) in ROUTES {
        let found = node
            .namespace
            .ip(&format!("{family} route show {route} proto bird"))?;
        ensure!(
            found.contains("metric 32"),
            "the route {route} of the owner's BIRD is missing on {}",
            node.name
        );
    }
    Ok(())
}
