//! BIRDs and agents end and come back; pods do not notice.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use super::Lab;
use crate::lab::objects;
use crate::lab::underlay::{Subnet, addresses};
use crate::meter::INTERVAL;
use crate::poll::until;

/// How long the others are watched after something has ended: BIRD's peers notice at once, and routes that should not have been kept
/// would go with it.
const WATCHED: Duration = Duration::from_secs(3);

/// How long is measured before anything is done: all pings are under way then.
const BEFORE: Duration = Duration::from_millis(500);

/// Host number of nobody.
const SILENT: u8 = 77;
/// How long it may take until a peer that does not answer is named.
const SAID: Duration = Duration::from_secs(10);

impl Lab {
    /// BIRD is killed, killed again while it recovers, and replaced as an upgrade does; agents are replaced.
    pub fn restarts(&mut self) -> anyhow::Result<()> {
        self.metered("BIRD was killed on node 2, and came back", |lab| {
            lab.kill_bird()?;
            std::thread::sleep(WATCHED);
            lab.start_bird()?;
            lab.wait_until_established()
        })?;
        self.metered("BIRD was killed twice in one restart", |lab| {
            lab.kill_bird()?;
            lab.start_bird()?;
            lab.kill_bird()?;
            lab.start_bird()?;
            lab.wait_until_established()
        })?;
        self.metered("BIRD was replaced on node 2", |lab| {
            let programs = lab.site.bird_programs()?.to_owned();
            let (node, _) = lab.site.node_mut(2)?;
            node.take_bird()?.leave_gracefully(&node.space, &programs)?;
            std::thread::sleep(WATCHED);
            lab.start_bird()?;
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

    /// A node without routes gets those of peers that speak, though another does not.
    fn boot_beside_a_silent_peer(&mut self) -> anyhow::Result<()> {
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
        })?;
        self.kill_bird()?;
        let (node, _) = self.site.node_mut(2)?;
        for family in ["-4", "-6"] {
            node.space.ip(&format!("{family} route flush proto bird"))?;
        }
        self.start_bird()?;
        self.wait_for_routes()
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

    fn kill_bird(&mut self) -> anyhow::Result<()> {
        let (node, _) = self.site.node_mut(2)?;
        node.take_bird()?.kill()
    }

    fn start_bird(&mut self) -> anyhow::Result<()> {
        let programs = self.site.bird_programs()?.to_owned();
        let (node, run) = self.site.node_mut(2)?;
        node.start_bird(run, &programs)
    }

    fn restart_agents(&mut self) -> anyhow::Result<()> {
        for node in &mut self.site.nodes {
            node.kill_agent()?;
        }
        self.site.start_agents_alone()
    }
}
