//! External changes of the agent's kernel objects and files on a node while all pods exchange traffic.
//!
//! Small changes follow each other at a high rate; each may cost at most three pings of a pair. Large changes are made one at a time,
//! and the node must have its desired state again before the next. No connection may be reset, and objects of other owners stay
//! unchanged.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::harness::command::output;
use crate::lab::traffic::load::{LOW_LOAD, Measured};
use crate::lab::{Lab, Options, run_scenario};
use crate::traffic::loss_meter::Losses;

/// How long small changes are made.
const SMALL_CHANGES_TIME: Duration = Duration::from_secs(20);
/// Time between two small changes.
const SMALL_CHANGES_INTERVAL: Duration = Duration::from_millis(100);
/// Pings of a pair that one small change may cost, at 10 ms between two pings.
const ALLOWED_LOSS: u64 = 3;
/// Number of the node that is changed.
const NODE: usize = 1;

/// Shell commands that remove single routes, neighbours, FDB entries and addresses. LINK is the link of the mode.
const SMALL_CHANGES: [&str; 5] = [
    "ip route delete $(ip route show proto 78 | grep -w via | head -n 1 | cut -d ' ' -f 1) proto 78",
    "ip route flush proto 78",
    "ip neighbour flush dev LINK nud permanent",
    "bridge fdb delete $(bridge fdb show dev LINK | head -n 1 | cut -d ' ' -f 1) dev LINK",
    "ip -4 address flush dev LINK",
];

/// Shell commands that remove an object with its dependents, or stop all forwarding. LINK is the link of the mode.
const LARGE_CHANGES: [&str; 9] = [
    "ip link set LINK down",
    "ip link set LINK mtu 1280",
    "ip link set LINK address 02:00:00:00:00:99",
    "ip link delete LINK",
    "nft flush ruleset",
    "sysctl -qw net.ipv4.ip_forward=0",
    "sysctl -qw net.ipv4.conf.LINK.rp_filter=1",
    "rm /run/netweft/node.json",
    "echo '{' > /run/cni/10-netweft.conflist",
];

/// `ip` commands that create objects of another owner, similar to the agent's.
const FOREIGN_OBJECTS: [&str; 4] = [
    "link add other-br0 type bridge",
    "link set other-br0 addrgenmode none up",
    "route add 10.250.0.0/24 dev other-br0 metric 20 proto static",
    "neighbour add 10.250.0.7 lladdr 02:00:00:00:00:77 dev other-br0 nud permanent",
];

/// Builds a lab and changes the kernel objects and files of its first node.
///
/// # Errors
/// The lab cannot be built, or a check fails. The agents' logs are printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<()> {
    run_scenario(options.clone(), &title(options), keep, Lab::run_drift)
}

/// The title of the lab.
#[must_use]
pub fn title(options: &Options) -> String {
    format!("external changes on a node, {options}")
}

impl Lab {
    fn run_drift(&mut self) -> anyhow::Result<()> {
        self.cluster.start_servers(true)?;
        for command in FOREIGN_OBJECTS {
            self.cluster.node(NODE)?.namespace.ip(command)?;
        }
        let before = self.foreign_objects()?;
        self.apply_small_changes()?;
        for command in LARGE_CHANGES {
            let (took, losses) = self.under_external_changes(|lab| {
                lab.run_on_node(command)?;
                let changed = Instant::now();
                lab.cluster.wait_for_desired_state()?;
                Ok(changed.elapsed())
            })?;
            println!("{command}: repaired within {took:.1?}, {losses}");
        }
        let after = self.foreign_objects()?;
        ensure!(
            after == before,
            "objects of another owner have changed from\n{before}to\n{after}"
        );
        Ok(())
    }

    fn apply_small_changes(&mut self) -> anyhow::Result<()> {
        let (changes, losses) = self.under_external_changes(|lab| {
            let started = Instant::now();
            let (mut attempts, mut changes) = (0, 0);
            for command in SMALL_CHANGES.iter().cycle() {
                // A command fails if the agent has not restored the object of the previous change yet.
                changes += u32::from(lab.run_on_node(command).is_ok());
                attempts += 1;
                let next = started + SMALL_CHANGES_INTERVAL * attempts;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                if started.elapsed() >= SMALL_CHANGES_TIME {
                    break;
                }
            }
            lab.cluster.wait_for_desired_state()?;
            ensure!(
                changes > attempts / 2,
                "only {changes} of {attempts} commands changed anything"
            );
            Ok(changes)
        })?;
        println!("{changes} small changes in {SMALL_CHANGES_TIME:?}: {losses}");
        let allowed = u64::from(changes) * ALLOWED_LOSS;
        for (source, answer) in &losses.pairs {
            let lost = u64::from(answer.sent.saturating_sub(answer.received));
            ensure!(
                lost <= allowed,
                "{source} to {}: {lost} pings lost; {changes} changes may cost {allowed}",
                answer.target
            );
        }
        Ok(())
    }

    /// Runs `action` under load. No connection may be reset.
    fn under_external_changes<T>(
        &mut self,
        action: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Losses)> {
        let Measured {
            result,
            losses,
            connections,
        } = self.measure_under_load(&LOW_LOAD, action)?;
        let result = result?;
        // With losses every 100 ms, retransmission can take longer than the time limit of a connection. That is not a reset.
        let timed_out = |error: &str| error.contains("timed out") || error.contains("no answer");
        let mut failed = connections.failed.iter();
        let reset = failed.find(|connection| !timed_out(&connection.error));
        ensure!(reset.is_none(), "{losses}; {connections}");
        Ok((result, losses))
    }

    /// Runs a shell command on the node.
    fn run_on_node(&self, command: &str) -> anyhow::Result<()> {
        let link = self.options.mode.link().unwrap_or("nw-own");
        let script = command.replace("LINK", link);
        let namespace = &self.cluster.node(NODE)?.namespace;
        output(namespace.command("sh").args(["-c", &script])).map(drop)
    }

    /// The objects of [`FOREIGN_OBJECTS`] as `ip` prints them.
    fn foreign_objects(&self) -> anyhow::Result<String> {
        let namespace = &self.cluster.node(NODE)?.namespace;
        let commands = [
            "-o link show dev other-br0",
            "route show dev other-br0",
            "neighbour show dev other-br0 nud permanent",
        ];
        commands
            .iter()
            .map(|command| namespace.ip(command))
            .collect()
    }
}
