//! Another program changes netweft's objects on a node while all pods and nodes communicate.
//!
//! Small things go one after the other, so fast that it is a storm; each may cost three pings of a pair at most. Big things go
//! one at a time, and the node has to be right again before the next. No connection may be reset, and foreign objects stay.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::harness::command::output;
use crate::lab::traffic::load::{CALM, Cost};
use crate::lab::{Lab, Options, run_scenario};
use crate::traffic::loss_meter::Losses;

/// How long the storm lasts, and the time between two of its harms.
const STORM: (Duration, Duration) = (Duration::from_secs(20), Duration::from_millis(100));
/// Pings of a pair that one small harm may cost, 10 ms each.
const BUDGET: u64 = 3;
/// The node on which it happens.
const VICTIM: usize = 1;

/// What takes a small thing away. A word in capitals is filled in.
const SMALL: [&str; 5] = [
    "ip route delete $(ip route show proto 78 | grep -w via | head -n 1 | cut -d ' ' -f 1) proto 78",
    "ip route flush proto 78",
    "ip neighbour flush dev LINK nud permanent",
    "bridge fdb delete $(bridge fdb show dev LINK | head -n 1 | cut -d ' ' -f 1) dev LINK",
    "ip -4 address flush dev LINK",
];

/// What takes something with all that hangs on it, or what lets packets through at all.
const BIG: [&str; 9] = [
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

/// Foreign objects that resemble netweft's.
const FOREIGN_OBJECTS: [&str; 4] = [
    "link add other-br0 type bridge",
    "link set other-br0 addrgenmode none up",
    "route add 10.250.0.0/24 dev other-br0 metric 20 proto static",
    "neighbour add 10.250.0.7 lladdr 02:00:00:00:00:77 dev other-br0 nud permanent",
];

/// Build a lab, and tamper with its first node.
///
/// # Errors
/// A check that fails; the agents' logs have been printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<()> {
    run_scenario(options.clone(), &about(options), keep, Lab::suffer)
}

/// What the lab is about.
#[must_use]
pub fn about(options: &Options) -> String {
    format!("external changes of a node, {options}")
}

impl Lab {
    fn suffer(&mut self) -> anyhow::Result<()> {
        self.site.start_servers(true)?;
        for line in FOREIGN_OBJECTS {
            self.site.node(VICTIM)?.space.ip(line)?;
        }
        let foreign = self.foreign_objects()?;
        self.storm()?;
        for harm in BIG {
            let (took, losses) = self.tampered(|lab| {
                lab.harm(harm)?;
                let harmed = Instant::now();
                lab.site.is_as_wanted()?;
                Ok(harmed.elapsed())
            })?;
            println!("{harm}: right again within {took:.1?}, {losses}");
        }
        ensure!(
            self.foreign_objects()? == foreign,
            "foreign objects have changed from\n{foreign}to\n{}",
            self.foreign_objects()?
        );
        Ok(())
    }

    fn storm(&mut self) -> anyhow::Result<()> {
        let (harms, losses) = self.tampered(|lab| {
            let began = Instant::now();
            let (mut tries, mut harms) = (0, 0);
            for harm in SMALL.iter().cycle() {
                // One that finds nothing to take away, because the agent has yet to put it back, is none.
                harms += u32::from(lab.harm(harm).is_ok());
                tries += 1;
                let next = began + STORM.1 * tries;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                if began.elapsed() >= STORM.0 {
                    break;
                }
            }
            lab.site.is_as_wanted()?;
            ensure!(harms > tries / 2, "only {harms} of {tries} harms did any");
            Ok(harms)
        })?;
        println!("{harms} small harms in {:?}: {losses}", STORM.0);
        let budget = u64::from(harms) * BUDGET;
        for (from, answer) in &losses.pairs {
            let lost = u64::from(answer.sent.saturating_sub(answer.received));
            ensure!(
                lost <= budget,
                "{from} to {}: {lost} lost, and {harms} harms may cost {budget}",
                answer.target
            );
        }
        Ok(())
    }

    /// Changes objects while all pods and nodes communicate; no connection may be reset.
    fn tampered<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Losses)> {
        let Cost {
            done,
            losses,
            streams,
        } = self.under_load(&CALM, act)?;
        let done = done?;
        // A loss in each tenth of a second can delay TCP for longer than the timeout of the client.
        let slow = |why: &str| why.contains("timed out") || why.contains("no answer");
        let mut dead = streams.dead.iter().filter(|(_, _, why)| !slow(why));
        ensure!(dead.next().is_none(), "{losses}; {streams}");
        Ok((done, losses))
    }

    /// A harm in words of the shell.
    fn harm(&self, harm: &str) -> anyhow::Result<()> {
        let link = self.options.mode.link().unwrap_or("nw-own");
        let script = harm.replace("LINK", link);
        let space = &self.site.node(VICTIM)?.space;
        output(space.command("sh").args(["-c", &script])).map(drop)
    }

    /// All foreign objects.
    fn foreign_objects(&self) -> anyhow::Result<String> {
        let space = &self.site.node(VICTIM)?.space;
        let looks = [
            "-o link show dev other-br0",
            "route show dev other-br0",
            "neighbour show dev other-br0 nud permanent",
        ];
        looks.iter().map(|look| space.ip(look)).collect()
    }
}
