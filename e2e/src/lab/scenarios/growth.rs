//! Assignment and release of blocks. A node that runs short of addresses gets a second block before a pod has to wait, and the block is
//! released when it is empty. A pool that no pod uses by default assigns a block where a pod requests the pool. A cluster with one IP
//! family gets a pool of the other.

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

/// Number of additional pods: more than one block of 64 addresses holds.
const POD_COUNT: usize = 70;
/// CIDR of a second pool, which pods use only by annotation.
const OTHER_POOL: &str = "10.247.0.0/24";
/// Limit until an agent has applied a change and reported it.
const SYNC_TIMEOUT: Duration = Duration::from_secs(20);

/// Builds a lab, and assigns and releases blocks while all pods ping each other.
///
/// # Errors
/// The lab cannot be built, or a check fails. The agents' logs are printed then.
pub fn run(options: &Options, keep: bool) -> anyhow::Result<()> {
    run_scenario(options.clone(), &title(options), keep, Lab::run_growth)
}

/// The title of the lab.
#[must_use]
pub fn title(options: &Options) -> String {
    format!("nodes that receive and release blocks, {options}")
}

impl Lab {
    fn run_growth(&mut self) -> anyhow::Result<()> {
        let meter = self.cluster.meter(INTERVAL)?;
        let outcome = self
            .grow_and_shrink()
            .and_then(|()| self.request_pool())
            .and_then(|()| self.add_second_family());
        let losses = meter.finish()?;
        outcome?;
        losses.check_none("blocks were assigned and released, also of other pools")
    }

    /// A pod requests another pool than the default. The first ADD fails and records the request, a later one finds a block. No other node
    /// receives a block of the pool.
    fn request_pool(&mut self) -> anyhow::Result<()> {
        let spec = json!({ "cidr": OTHER_POOL, "networkMode": "default", "podInterface": self.options.pod_interface });
        let other = objects::named_pool("other", &spec)?;
        self.cluster.store.pools.push(other);
        self.cluster.reconcile()?;
        ensure!(
            self.cluster.store.blocks_of("other") == 0,
            "a block was assigned before a pod requested the pool"
        );
        until("the pool in node.json", SYNC_TIMEOUT, || {
            let listed = self.cluster.node(1)?.plugin_lists_pool("other")?;
            ensure!(listed, "node.json does not list the pool");
            Ok(())
        })?;
        let started = Instant::now();
        let mut attempts = 0;
        let pod = until("a pod of the other pool", SYNC_TIMEOUT, || {
            attempts += 1;
            let node = self
                .cluster
                .nodes
                .first()
                .context("the node does not exist")?;
            let run = &mut self.cluster.run;
            let pool = Some("other");
            let added = Pod::add_of_pool(run, node, "pod-other", &self.options.binaries, pool);
            self.cluster.reconcile()?;
            added
        })?;
        let took = started.elapsed();
        println!(
            "an address of a pool without a block on the node: {attempts} attempts in {took:.1?}"
        );
        let pool: IpNet = OTHER_POOL.parse()?;
        ensure!(
            attempts > 1 && pod.addresses.iter().any(|ip| pool.contains(ip)),
            "the pod has {:?} after {attempts} attempts",
            pod.addresses
        );
        let blocks = self.cluster.store.blocks_of("other");
        ensure!(blocks == 1, "{blocks} blocks were assigned for one pod");
        until("reachability of the pod", SYNC_TIMEOUT, || self.ping(&pod))
    }

    fn grow_and_shrink(&mut self) -> anyhow::Result<()> {
        let families = self.options.families.pools().count();
        let pods = self.add_many_pods()?;
        let blocks = self.blocks()?;
        ensure!(
            blocks.len() == 2 * families,
            "the node has {blocks:?} for {POD_COUNT} pods"
        );
        self.ping(pods.last().context("the pod does not exist")?)?;
        for pod in &pods {
            pod.delete(self.cluster.node(1)?, &self.options.binaries)?;
        }
        until("the release of the second block", SYNC_TIMEOUT, || {
            self.cluster.reconcile()?;
            let kept = self.blocks()?;
            ensure!(kept.len() == families, "the node has {kept:?}");
            self.check_no_routes(blocks.iter().filter(|block| !kept.contains(block)))
        })
    }

    /// A cluster with one IP family gets a pool of the other. New pods have both families and reach each other by both, and existing pods
    /// reach them.
    fn add_second_family(&mut self) -> anyhow::Result<()> {
        if self.options.families != Families::V4 {
            return Ok(());
        }
        let spec = json!({ "cidr": POOL_V6, "networkMode": "default", "podInterface": self.options.pod_interface });
        let pool = objects::named_pool("ipv6", &spec)?;
        self.cluster.store.pools.push(pool);
        self.cluster.reconcile()?;
        let binaries = self.options.binaries.clone();
        let mut pods = Vec::new();
        for number in [1, 2] {
            let pod = until("a pod with both families", SYNC_TIMEOUT, || {
                self.cluster.reconcile()?;
                let node = self
                    .cluster
                    .nodes
                    .get(number - 1)
                    .context("the node does not exist")?;
                let name = format!("dual-stack-{number}");
                let pod = Pod::add(&mut self.cluster.run, node, &name, &binaries)?;
                if pod.addresses.len() != 2 {
                    pod.delete(node, &binaries)?;
                    bail!("the pod has {:?}", pod.addresses);
                }
                Ok(pod)
            })?;
            pods.push(pod);
        }
        let [one, two] = &pods[..] else {
            bail!("{} instead of two pods were added", pods.len());
        };
        until("reachability by both families", SYNC_TIMEOUT, || {
            let forward = one.namespace.ping(&binaries, &two.addresses)?;
            let back = two.namespace.ping(&binaries, &one.addresses)?;
            ensure!(
                all_answered(&forward) && all_answered(&back),
                "{forward:?} and {back:?}"
            );
            Ok(())
        })?;
        let existing = self.cluster.pods.iter();
        for pod in existing.filter(|pod| pod.node != one.node) {
            let ipv4 = one.addresses.iter().copied().filter(IpAddr::is_ipv4);
            let answers = pod.namespace.ping(&binaries, &ipv4.collect::<Vec<_>>())?;
            ensure!(
                all_answered(&answers),
                "{} does not reach {}",
                pod.name,
                one.name
            );
        }
        Ok(())
    }

    /// Adds pods one by one. The agent reports each before the next is added. Every ADD must succeed at the first attempt.
    fn add_many_pods(&mut self) -> anyhow::Result<Vec<Pod>> {
        let before = self.used_addresses()?;
        let mut pods = Vec::new();
        for number in 1..=POD_COUNT {
            let node = self
                .cluster
                .nodes
                .first()
                .context("the node does not exist")?;
            let name = format!("extra-{number}");
            let pod = Pod::add(&mut self.cluster.run, node, &name, &self.options.binaries)?;
            let added = i64::try_from(number * pod.addresses.len())?;
            pods.push(pod);
            until("the pod in the status of the node", SYNC_TIMEOUT, || {
                self.cluster.reconcile()?;
                let used = self.used_addresses()?;
                ensure!(
                    used == before + added,
                    "the status reports {used} used addresses instead of {}",
                    before + added
                );
                Ok(())
            })?;
        }
        Ok(pods)
    }

    /// Pod addresses in use on the first node, according to its status.
    fn used_addresses(&self) -> anyhow::Result<i64> {
        let status = self.cluster.node(1)?.status()?;
        Ok(status.subnets.iter().map(|block| block.used).sum())
    }

    fn blocks(&self) -> anyhow::Result<Vec<IpNet>> {
        let node = &self.cluster.node(1)?.name;
        Ok(self.cluster.store.network(node)?.spec.subnets.clone())
    }

    /// Pings between `pod` and the pods of other nodes, in both directions.
    fn ping(&self, pod: &Pod) -> anyhow::Result<()> {
        let binaries = &self.options.binaries;
        for other in self
            .cluster
            .pods
            .iter()
            .filter(|other| other.node != pod.node)
        {
            let forward = other.namespace.ping(binaries, &pod.addresses)?;
            let back = pod.namespace.ping(binaries, &other.addresses)?;
            ensure!(
                all_answered(&forward) && all_answered(&back),
                "{} and {} at {:?} do not reach each other",
                other.name,
                pod.name,
                pod.addresses
            );
        }
        Ok(())
    }

    fn check_no_routes<'a>(&self, blocks: impl Iterator<Item = &'a IpNet>) -> anyhow::Result<()> {
        for block in blocks {
            let family = if block.addr().is_ipv4() { "-4" } else { "-6" };
            for node in &self.cluster.nodes {
                let routes = node.namespace.ip(&format!("{family} route show {block}"))?;
                ensure!(routes.is_empty(), "{} still has {routes}", node.name);
            }
        }
        Ok(())
    }
}

fn all_answered(answers: &[Answer]) -> bool {
    answers.iter().all(|answer| answer.received == answer.sent)
}
