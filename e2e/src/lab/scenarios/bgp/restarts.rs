//! BIRDs and agents end and come back; pods do not notice.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use crate::harness::command::feed;
use crate::harness::poll::until;
use crate::lab::cluster::objects;
use crate::lab::node::Node;
use crate::lab::scenarios::bgp::Lab;
use crate::lab::topology::underlay::{Subnet, addresses};
use crate::traffic::loss_meter::INTERVAL;

/// How long the others are watched after something has ended: BIRD's peers notice at once, and routes that should not have been kept
/// would go with it.
const WATCHED: Duration = Duration::from_secs(3);

/// How long is measured before anything is done: all pings are under way then.
const BEFORE: Duration = Duration::from_millis(500);

/// How late a node's announcements come: after all sessions are there.
const LATE: Duration = Duration::from_secs(5);

/// A host number without a host.
const SILENT: u8 = 77;
/// How long it may take until a peer that does not answer is named.
const SAID: Duration = Duration::from_secs(10);

impl Lab {
    /// BIRD is killed, killed again while it recovers, and replaced as an upgrade does; agents are replaced.
    pub fn restarts(&mut self) -> anyhow::Result<()> {
        self.metered("BIRD was killed on node 2, and came back", |lab| {
            lab.kill_bird(2)?;
            std::thread::sleep(WATCHED);
            lab.start_bird(2)?;
            lab.wait_until_established()
        })?;
        self.metered("BIRD was killed twice in one restart", |lab| {
            lab.kill_bird(2)?;
            lab.start_bird(2)?;
            lab.kill_bird(2)?;
            lab.start_bird(2)?;
            lab.wait_until_established()
        })?;
        self.metered("BIRD was replaced on node 2", |lab| {
            let programs = lab.site.bird_programs()?.to_owned();
            let (node, _) = lab.site.node_mut(2)?;
            node.take_bird()?.leave_gracefully(&node.space, &programs)?;
            std::thread::sleep(WATCHED);
            lab.start_bird(2)?;
            lab.wait_until_established()
        })?;
        self.wait_for_routes()?;
        let before = self.site.established()?;
        self.metered("all agents were killed, and came back", |lab| {
            lab.restart_agents()?;
            lab.wait_until_established()
        })?;
        let after = self.site.established()?;
        ensure!(
            before == after,
            "new agents have changed sessions: {before:?}, then {after:?}"
        );
        self.boot_beside_a_silent_peer()
    }

    /// Two BIRDs begin at the same time, so that neither waits for the other (RFC 4724, section 4.1): each is done when their session is
    /// there, and what the other announces comes after that.
    pub fn recoveries(&mut self) -> anyhow::Result<()> {
        self.metered(
            "two BIRDs were killed, and one received the other's blocks late",
            |lab| {
                lab.kill_bird(2)?;
                lab.kill_bird(3)?;
                lab.hold_back_updates(3)?;
                lab.start_bird(2)?;
                lab.start_bird(3)?;
                std::thread::sleep(LATE);
                let (node, _) = lab.site.node_mut(3)?;
                nft(node, "delete table inet late\n")?;
                lab.wait_until_established()?;
                lab.wait_for_routes()
            },
        )
    }

    /// What a node announces by BGP does not leave it: segments that begin with an UPDATE (RFC 4271, section 4.1), behind a TCP header with
    /// time stamps.
    fn hold_back_updates(&mut self, number: usize) -> anyhow::Result<()> {
        let (node, _) = self.site.node_mut(number)?;
        nft(
            node,
            "table inet late {\n\tchain output {\n\t\ttype filter hook output priority filter;\n\
             \t\ttcp dport 179 @th,400,8 2 drop\n\t\ttcp sport 179 @th,400,8 2 drop\n\t}\n}\n",
        )
    }

    /// A node without routes gets those of peers that speak, though another does not.
    fn boot_beside_a_silent_peer(&mut self) -> anyhow::Result<()> {
        self.have_a_silent_peer()?;
        self.kill_bird(2)?;
        let (node, _) = self.site.node_mut(2)?;
        for family in ["-4", "-6"] {
            node.space.ip(&format!("{family} route flush proto bird"))?;
        }
        self.start_bird(2)?;
        self.wait_for_routes()
    }

    /// One that every node has a session with, and that is not there.
    fn have_a_silent_peer(&mut self) -> anyhow::Result<()> {
        for address in addresses(self.families, Subnet::Near, SILENT) {
            let name = format!("silent-{}", self.site.store.peers.len());
            let spec = json!({ "peerIP": address.addr(), "asNumber": 64_513 });
            self.site.store.peers.push(objects::peer(&name, &spec)?);
        }
        self.site.settle()?;
        until("the silent peer's sessions", SAID, || {
            self.site.settle()?;
            let status = self.site.store.peer_status("silent-0");
            ensure!(
                status.is_some_and(|status| !status.errors.is_empty()),
                "{status:?}"
            );
            Ok(())
        })
    }

    /// Pods ping while something is done, and nothing is lost.
    pub fn metered(
        &mut self,
        what: &str,
        done: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let meter = self.site.meter(INTERVAL)?;
        std::thread::sleep(BEFORE);
        let outcome = done(self);
        let losses = meter.finish()?;
        outcome?;
        losses.check_none(what)
    }

    fn kill_bird(&mut self, number: usize) -> anyhow::Result<()> {
        let (node, _) = self.site.node_mut(number)?;
        node.take_bird()?.kill()
    }

    fn start_bird(&mut self, number: usize) -> anyhow::Result<()> {
        let programs = self.site.bird_programs()?.to_owned();
        let (node, run) = self.site.node_mut(number)?;
        node.start_bird(run, &programs)
    }

    fn restart_agents(&mut self) -> anyhow::Result<()> {
        for node in &mut self.site.nodes {
            node.kill_agent()?;
        }
        self.site.start_agents_alone()
    }
}

/// Carries out a script on a node.
fn nft(node: &Node, script: &str) -> anyhow::Result<()> {
    feed(node.space.command("nft").args(["-f", "-"]), script)
}
