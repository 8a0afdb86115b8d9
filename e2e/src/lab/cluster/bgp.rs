//! BGP sessions and routes of the cluster's nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use kube::ResourceExt;
use netweft_crds::SessionState;

use crate::harness::poll::until;
use crate::lab::cluster::nodes::Cluster;
use crate::lab::node::{Node, bird};

/// Limit until sessions are established and their routes are in the kernel, which takes some seconds.
const ROUTES_TIMEOUT: Duration = Duration::from_secs(30);

impl Cluster {
    /// Names of the BGPPeers.
    pub fn peer_names(&self) -> Vec<String> {
        self.store.peers.iter().map(ResourceExt::name_any).collect()
    }

    /// The established sessions of all nodes by name, with the time of establishment.
    pub fn established(&self) -> anyhow::Result<BTreeMap<String, BTreeMap<String, String>>> {
        let programs = self.bird_programs()?;
        let sessions_of = |node: &Node| {
            let sessions = bird::established(&node.namespace, programs)?;
            Ok((node.name.clone(), sessions))
        };
        self.nodes.iter().map(sessions_of).collect()
    }

    /// Waits until every node has applied its current NodeNetwork and all its sessions are established.
    pub fn wait_until_established(&mut self, deadline: Duration) -> anyhow::Result<()> {
        until("all sessions", deadline, || {
            self.reconcile()?;
            // Agents poll BIRD every two seconds, so their status can be out of date.
            let established = self.established()?;
            for node in &self.nodes {
                let network = self.store.network(&node.name)?;
                let status = node.status()?;
                let up = established.get(&node.name).map_or(0, BTreeMap::len);
                ensure!(
                    status.observed_generation == network.metadata.generation,
                    "{} is at generation {:?} of {:?}",
                    node.name,
                    status.observed_generation,
                    network.metadata.generation
                );
                let states: BTreeMap<_, _> = status
                    .sessions
                    .iter()
                    .map(|session| (&session.name, session.state))
                    .collect();
                let expected = network.spec.bgp.iter().flat_map(|bgp| &bgp.sessions);
                ensure!(
                    up == expected.clone().count(),
                    "BIRD of {} has {up} established sessions",
                    node.name
                );
                for session in expected {
                    ensure!(
                        states.get(&session.name) == Some(&SessionState::Established),
                        "{}: {} is not established: {states:?}",
                        node.name,
                        session.name
                    );
                }
            }
            Ok(())
        })
    }

    /// Waits until the kernel of every node has this number of routes from BIRD.
    pub fn wait_for_bgp_routes(&self, expected: usize) -> anyhow::Result<()> {
        for node in &self.nodes {
            until("routes by BGP", ROUTES_TIMEOUT, || {
                let routes = node.bgp_routes()?;
                ensure!(
                    routes.len() == expected,
                    "{} has {} of {expected}: {routes:?}",
                    node.name,
                    routes.len()
                );
                Ok(())
            })?;
        }
        Ok(())
    }
}
