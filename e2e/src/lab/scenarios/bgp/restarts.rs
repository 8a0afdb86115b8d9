//! Restarts of BIRD and of agents, without packet loss of pods.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use crate::harness::poll::until;
use crate::lab::cluster::objects;
use crate::lab::scenarios::bgp::Lab;
use crate::lab::topology::nft;
use crate::lab::topology::underlay::{Subnet, addresses};
use crate::traffic::loss_meter::INTERVAL;

/// How long BIRD stays stopped. The peers detect the end at once, and without graceful restart would remove its routes in this time.
const STOPPED_TIME: Duration = Duration::from_secs(3);

/// Time of measurement before an action, so that all pings have started.
const METER_LEAD_TIME: Duration = Duration::from_millis(500);

/// Delay of a node's announcements, longer than the establishment of all sessions takes.
const UPDATE_DELAY: Duration = Duration::from_secs(5);

/// A host number without a host.
const ABSENT_HOST: u8 = 77;
/// Limit until the status reports a peer that does not answer.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

impl Lab {
    /// BIRD is killed, killed again during its recovery, and restarted gracefully as by an upgrade; then all agents restart.
    pub fn run_restarts(&mut self) -> anyhow::Result<()> {
        self.expect_no_loss("BIRD was killed on node 2 and started again", |lab| {
            lab.kill_bird(2)?;
            std::thread::sleep(STOPPED_TIME);
            lab.start_bird(2)?;
            lab.wait_until_established()
        })?;
        self.expect_no_loss("BIRD was killed again during its recovery", |lab| {
            lab.kill_bird(2)?;
            lab.start_bird(2)?;
            lab.kill_bird(2)?;
            lab.start_bird(2)?;
            lab.wait_until_established()
        })?;
        self.expect_no_loss("BIRD was restarted gracefully on node 2", |lab| {
            let programs = lab.cluster.bird_programs()?.to_owned();
            let (node, _) = lab.cluster.node_mut(2)?;
            node.take_bird()?
                .stop_gracefully(&node.namespace, &programs)?;
            std::thread::sleep(STOPPED_TIME);
            lab.start_bird(2)?;
            lab.wait_until_established()
        })?;
        self.wait_for_routes()?;
        let before = self.cluster.established()?;
        self.expect_no_loss("all agents were killed and started again", |lab| {
            lab.restart_agents()?;
            lab.wait_until_established()
        })?;
        let after = self.cluster.established()?;
        ensure!(
            before == after,
            "sessions have changed after the restart of agents: {before:?}, then {after:?}"
        );
        self.start_with_absent_peer()
    }

    /// Two BIRDs restart at the same time, so that neither waits for the other's End-of-RIB (RFC 4724, section 4.1). Each completes its
    /// recovery when their session is established, before it has received the other's routes.
    pub fn run_recoveries(&mut self) -> anyhow::Result<()> {
        self.expect_no_loss(
            "two BIRDs were killed, and the routes of one arrived late",
            |lab| {
                lab.kill_bird(2)?;
                lab.kill_bird(3)?;
                lab.block_updates(3)?;
                lab.start_bird(2)?;
                lab.start_bird(3)?;
                std::thread::sleep(UPDATE_DELAY);
                let (node, _) = lab.cluster.node_mut(3)?;
                nft::run_script(&node.namespace, "delete table inet late\n")?;
                lab.wait_until_established()?;
                lab.wait_for_routes()
            },
        )
    }

    /// Drops the UPDATE messages of a node: TCP segments whose payload starts with message type 2 (RFC 4271, section 4.1). The offset assumes
    /// a TCP header with timestamps.
    fn block_updates(&mut self, number: usize) -> anyhow::Result<()> {
        let (node, _) = self.cluster.node_mut(number)?;
        nft::run_script(
            &node.namespace,
            "table inet late {\n\tchain output {\n\t\ttype filter hook output priority filter;\n\
             \t\ttcp dport 179 @th,400,8 2 drop\n\t\ttcp sport 179 @th,400,8 2 drop\n\t}\n}\n",
        )
    }

    /// A node without routes gets the routes of all other peers although one peer is absent.
    fn start_with_absent_peer(&mut self) -> anyhow::Result<()> {
        self.add_absent_peer()?;
        self.kill_bird(2)?;
        let (node, _) = self.cluster.node_mut(2)?;
        for family in ["-4", "-6"] {
            node.namespace
                .ip(&format!("{family} route flush proto bird"))?;
        }
        self.start_bird(2)?;
        self.wait_for_routes()
    }

    /// Adds a BGPPeer without a host to all nodes, and waits until its status reports errors.
    fn add_absent_peer(&mut self) -> anyhow::Result<()> {
        for address in addresses(self.families, Subnet::Near, ABSENT_HOST) {
            let name = format!("absent-{}", self.cluster.store.peers.len());
            let spec = json!({ "peerIP": address.addr(), "asNumber": 64_513 });
            self.cluster.store.peers.push(objects::peer(&name, &spec)?);
        }
        self.cluster.reconcile()?;
        until("errors of the absent peer", REPORT_TIMEOUT, || {
            self.cluster.reconcile()?;
            let status = self.cluster.store.peer_status("absent-0");
            ensure!(
                status.is_some_and(|status| !status.errors.is_empty()),
                "{status:?}"
            );
            Ok(())
        })
    }

    /// Runs `action` while pods ping. No ping may be lost.
    pub fn expect_no_loss(
        &mut self,
        what: &str,
        action: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let meter = self.cluster.meter(INTERVAL)?;
        std::thread::sleep(METER_LEAD_TIME);
        let outcome = action(self);
        let losses = meter.finish()?;
        outcome?;
        losses.check_none(what)
    }

    fn kill_bird(&mut self, number: usize) -> anyhow::Result<()> {
        let (node, _) = self.cluster.node_mut(number)?;
        node.take_bird()?.kill()
    }

    fn start_bird(&mut self, number: usize) -> anyhow::Result<()> {
        let programs = self.cluster.bird_programs()?.to_owned();
        let (node, run) = self.cluster.node_mut(number)?;
        node.start_bird(run, &programs)
    }

    fn restart_agents(&mut self) -> anyhow::Result<()> {
        for node in &mut self.cluster.nodes {
            node.kill_agent()?;
        }
        self.cluster.start_agents()
    }
}
