//! A node runs short of addresses, gets a second block before a pod has to wait, and gives it back when it is empty. A pool that
//! is no pod's first choice gives a node a block when a pod needs it. A cluster of one family gets the other.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use serde_json::json;

use crate::harness::poll::until;
use crate::lab::cluster::families::POOL_V6;
use crate::lab::cluster::objects;
use crate::lab::node::pod::Pod;
use crate::lab::{Families, Lab, Options, run_scenario};
use crate::traffic::loss_meter::INTERVAL;
use crate::traffic::ping::Answer;

/// More than one block of 64 has.
const CROWD: usize = 70;
/// A pool that comes after the lab's own.
const OTHER: &str = "10.247.0.0/24";
/// Time limit until an agent has applied and reported a change.
const HEARD: Duration = Duration::from_secs(20);

/// Build a lab, and let its first node fill and empty while pods ping.
///
/// # Errors
/// A check that fails; the agents' logs have been printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<()> {
    run_scenario(options.clone(), &about(options), keep, Lab::metered)
}

/// What the lab is about.
#[must_use]
pub fn about(options: &Options) -> String {
    format!("nodes that get blocks and give them back, {options}")
}

impl Lab {
    fn metered(&mut self) -> anyhow::Result<()> {
        let meter = self.site.meter(INTERVAL)?;
        let outcome = self
            .grow_and_shrink()
            .and_then(|()| self.ask())
            .and_then(|()| self.second_family());
        let losses = meter.finish()?;
        outcome?;
        losses.check_none("nodes got blocks, gave some back, and got some of other pools")
    }

    /// A pod asks for another pool than the first: its first ADD fails and leaves word, the next finds a block. No other node gets one.
    fn ask(&mut self) -> anyhow::Result<()> {
        let spec = json!({ "cidr": OTHER, "networkMode": "default", "podInterface": self.options.pod_interface });
        let other = objects::named_pool("other", &spec)?;
        self.site.store.pools.push(other);
        self.site.settle()?;
        ensure!(
            self.site.store.blocks_of("other") == 0,
            "no pod needs a block yet"
        );
        until("the node to have the pool", HEARD, || {
            let known = self.site.node(1)?.plugin_has_pool("other")?;
            ensure!(known, "it does not");
            Ok(())
        })?;
        let started = Instant::now();
        let mut tries = 0;
        let pod = until("a pod of the other pool", HEARD, || {
            tries += 1;
            let at = self.site.nodes.first().context("a node")?;
            let run = &mut self.site.run;
            let added = Pod::add_of_pool(run, at, "asker", &self.options.binaries, Some("other"));
            self.site.settle()?;
            added
        })?;
        let took = started.elapsed();
        println!("an address of a pool without a block here: {tries} tries in {took:.1?}");
        let pool: IpNet = OTHER.parse()?;
        ensure!(
            tries > 1 && pod.addresses.iter().any(|ip| pool.contains(ip)),
            "after {tries} tries it has {:?}",
            pod.addresses
        );
        let given = self.site.store.blocks_of("other");
        ensure!(given == 1, "{given} blocks for one pod");
        until("all pods and nodes to reach the pod", HEARD, || {
            self.ping(&pod)
        })
    }

    fn grow_and_shrink(&mut self) -> anyhow::Result<()> {
        let families = self.options.families.pools().count();
        let crowd = self.crowd()?;
        let blocks = self.blocks()?;
        ensure!(
            blocks.len() == 2 * families,
            "{CROWD} pods, and the node has {blocks:?}"
        );
        self.ping(crowd.last().context("a crowd")?)?;
        for pod in &crowd {
            pod.delete(self.site.node(1)?, &self.options.binaries)?;
        }
        until("the second block to be given back", HEARD, || {
            self.site.settle()?;
            let kept = self.blocks()?;
            ensure!(kept.len() == families, "the node has {kept:?}");
            self.no_routes_to(blocks.iter().filter(|block| !kept.contains(block)))
        })
    }

    /// A cluster of one family gets a pool of the other: new pods have both and reach each other by both, and are reached by those
    /// that were there.
    fn second_family(&mut self) -> anyhow::Result<()> {
        if self.options.families != Families::V4 {
            return Ok(());
        }
        let spec = json!({ "cidr": POOL_V6, "networkMode": "default", "podInterface": self.options.pod_interface });
        let six = objects::named_pool("six", &spec)?;
        self.site.store.pools.push(six);
        self.site.settle()?;
        let binaries = self.options.binaries.clone();
        let mut pods = Vec::new();
        for number in [1, 2] {
            let pod = until("a pod with both families", HEARD, || {
                self.site.settle()?;
                let at = self.site.nodes.get(number - 1).context("a node")?;
                let name = format!("both-{number}");
                let pod = Pod::add(&mut self.site.run, at, &name, &binaries)?;
                if pod.addresses.len() != 2 {
                    pod.delete(at, &binaries)?;
                    bail!("it has {:?}", pod.addresses);
                }
                Ok(pod)
            })?;
            pods.push(pod);
        }
        let [one, two] = &pods[..] else {
            bail!("two pods were started");
        };
        until("both to reach each other by both", HEARD, || {
            let there = one.space.ping(&binaries, &two.addresses)?;
            let back = two.space.ping(&binaries, &one.addresses)?;
            ensure!(all(&there) && all(&back), "{there:?} and {back:?}");
            Ok(())
        })?;
        let old = self.site.pods.iter().filter(|old| old.node != one.node);
        for old in old {
            let four = one.addresses.iter().copied().filter(IpAddr::is_ipv4);
            let answers = old.space.ping(&binaries, &four.collect::<Vec<_>>())?;
            ensure!(all(&answers), "{} does not reach {}", old.name, one.name);
        }
        Ok(())
    }

    /// No pod has to wait: ADD is asked once for each. The agent has counted one before the next comes.
    fn crowd(&mut self) -> anyhow::Result<Vec<Pod>> {
        let before = self.used()?;
        let mut crowd = Vec::new();
        for number in 1..=CROWD {
            let at = self.site.nodes.first().context("a node")?;
            let name = format!("crowd-{number}");
            let pod = Pod::add(&mut self.site.run, at, &name, &self.options.binaries)?;
            let added = i64::try_from(number * pod.addresses.len())?;
            crowd.push(pod);
            until("the agent to count a pod", HEARD, || {
                self.site.settle()?;
                let used = self.used()?;
                ensure!(used == before + added, "it counts {used}");
                Ok(())
            })?;
        }
        Ok(crowd)
    }

    /// Pods' addresses on the first node.
    fn used(&self) -> anyhow::Result<i64> {
        let status = self.site.node(1)?.status()?;
        Ok(status.subnets.iter().map(|block| block.used).sum())
    }

    fn blocks(&self) -> anyhow::Result<Vec<IpNet>> {
        let node = &self.site.node(1)?.name;
        Ok(self.site.store.network(node)?.spec.subnets.clone())
    }

    /// Pods of other nodes and `pod`, both ways.
    fn ping(&self, pod: &Pod) -> anyhow::Result<()> {
        let binaries = &self.options.binaries;
        for other in self.site.pods.iter().filter(|it| it.node != pod.node) {
            let there = other.space.ping(binaries, &pod.addresses)?;
            let back = pod.space.ping(binaries, &other.addresses)?;
            ensure!(
                all(&there) && all(&back),
                "{} and {} at {:?} do not reach each other",
                other.name,
                pod.name,
                pod.addresses
            );
        }
        Ok(())
    }

    fn no_routes_to<'a>(&self, blocks: impl Iterator<Item = &'a IpNet>) -> anyhow::Result<()> {
        for block in blocks {
            let family = if block.addr().is_ipv4() { "-4" } else { "-6" };
            for node in &self.site.nodes {
                let routes = node.space.ip(&format!("{family} route show {block}"))?;
                ensure!(routes.is_empty(), "{} still has {routes}", node.name);
            }
        }
        Ok(())
    }
}

fn all(answers: &[Answer]) -> bool {
    answers.iter().all(|it| it.received == it.sent)
}
