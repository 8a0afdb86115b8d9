//! The lab's API: users' objects and, in the operator's place, its own core, which is asked until it has nothing to write.
//!
//! All objects lie in memory; those that agents read are files as well. Statuses of agents are brought in by who reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use netweft_crds::{
    BGPPeer, BGPPeerStatus, IPPool, NetworkMode, NodeNetwork, NodeNetworkStatus, NodeSubnet,
};
use netweft_operator::Utilization;
use netweft_operator::{ClusterState, Plan, plan};
use serde::Serialize;

/// How often the operator is asked at most: what one answer leads to, the next may take up.
const ROUNDS: usize = 10;

/// Objects by name.
pub struct Store {
    folder: PathBuf,
    /// IPPools.
    pub pools: Vec<IPPool>,
    /// NetworkModes.
    pub modes: Vec<NetworkMode>,
    /// BGPPeers.
    pub peers: Vec<BGPPeer>,
    /// Nodes.
    pub nodes: Vec<Node>,
    subnets: BTreeMap<String, NodeSubnet>,
    networks: BTreeMap<String, NodeNetwork>,
    /// Names of NodeSubnets that their nodes can do without.
    surplus: BTreeSet<String>,
}

impl Store {
    /// An empty one, whose files are in `folder`. What is there is taken away.
    pub fn new(folder: PathBuf) -> anyhow::Result<Self> {
        // A run that was reaped may have left some.
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self {
            folder,
            pools: Vec::new(),
            modes: Vec::new(),
            peers: Vec::new(),
            nodes: Vec::new(),
            subnets: BTreeMap::new(),
            networks: BTreeMap::new(),
            surplus: BTreeSet::new(),
        })
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a node is to do.
    pub fn network(&self, node: &str) -> anyhow::Result<&NodeNetwork> {
        let network = self.networks.get(node);
        network.with_context(|| format!("the operator has made a NodeNetwork for {node}"))
    }

    /// How many blocks are assigned.
    pub fn blocks(&self) -> usize {
        self.subnets.len()
    }

    /// How many blocks of a pool are assigned.
    pub fn blocks_of(&self, pool: &str) -> usize {
        let subnets = self.subnets.values();
        subnets.filter(|subnet| subnet.spec.pool == pool).count()
    }

    /// Give the mode that all pools use another spec. What the operator says about it stays.
    pub fn edit_mode(&mut self, spec: &serde_json::Value) -> anyhow::Result<()> {
        let edited = crate::lab::cluster::objects::mode(spec)?;
        let mode = self.modes.first_mut().context("there is a mode")?;
        mode.spec = edited.spec;
        let generation = mode.metadata.generation.unwrap_or_default();
        mode.metadata.generation = Some(generation + 1);
        Ok(())
    }

    /// What the operator says about a BGPPeer.
    pub fn peer_status(&self, name: &str) -> Option<&BGPPeerStatus> {
        let mut peers = self.peers.iter();
        peers.find(|peer| peer.name_any() == name)?.status.as_ref()
    }

    /// Take over what an agent says about its node.
    pub fn report(&mut self, node: &str, status: NodeNetworkStatus) {
        if let Some(network) = self.networks.get_mut(node) {
            network.status = Some(status);
        }
    }

    /// Let the operator's core do all that it would, and write what agents read.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        for _ in 0..ROUNDS {
            self.look_for_surplus();
            let plan = self.plan();
            if !self.carry_out(&plan)? {
                return self.write();
            }
        }
        anyhow::bail!("the operator's core still has something to write after {ROUNDS} rounds")
    }

    /// As a leader does, but without waiting for a grace to run out.
    fn look_for_surplus(&mut self) {
        let subnets: Vec<_> = self.subnets.values().collect();
        let networks: Vec<_> = self.networks.values().collect();
        let growth = Utilization::observe(&subnets, &networks);
        for subnet in subnets {
            match growth.is_surplus(subnet) {
                Some(true) => self.surplus.insert(subnet.name_any()),
                Some(false) => self.surplus.remove(&subnet.name_any()),
                None => false,
            };
        }
    }

    fn plan(&self) -> Plan {
        plan(&ClusterState {
            surplus: self.surplus.clone(),
            pools: self.pools.iter().collect(),
            modes: self.modes.iter().collect(),
            peers: self.peers.iter().collect(),
            nodes: self.nodes.iter().collect(),
            subnets: self.subnets.values().collect(),
            networks: self.networks.values().collect(),
            now: Timestamp::now(),
            ..ClusterState::default()
        })
    }

    /// Whether there was something of interest to others.
    fn carry_out(&mut self, plan: &Plan) -> anyhow::Result<bool> {
        for subnet in plan.subnets.create.iter().chain(&plan.subnets.update) {
            self.subnets.insert(subnet.name_any(), subnet.clone());
        }
        for subnet in &plan.subnets.delete {
            let name = subnet.name_any();
            self.subnets.remove(&name);
            fs::remove_file(self.folder.join(format!("nodesubnet-{name}.yaml")))?;
        }
        for network in plan.networks.create.iter().chain(&plan.networks.update) {
            let name = network.name_any();
            let mut network = network.clone();
            let before = self.networks.get(&name);
            let generation = before.and_then(|before| before.metadata.generation);
            network.metadata.generation = Some(generation.unwrap_or(0) + 1);
            network.metadata.uid = Some(format!("lab-{name}"));
            self.networks.insert(name, network);
        }
        for change in &plan.mode_statuses {
            let mut modes = self.modes.iter_mut();
            if let Some(mode) = modes.find(|mode| mode.name_any() == change.name) {
                mode.status = Some(change.status.clone());
            }
        }
        for change in &plan.peer_statuses {
            let mut peers = self.peers.iter_mut();
            if let Some(peer) = peers.find(|peer| peer.name_any() == change.name) {
                peer.status = Some(change.status.clone());
            }
        }
        Ok(plan.subnets != <_>::default()
            || plan.networks != <_>::default()
            || !plan.mode_statuses.is_empty()
            || !plan.peer_statuses.is_empty())
    }

    fn write(&self) -> anyhow::Result<()> {
        ensure!(
            !self.subnets.is_empty(),
            "the operator's core assigns nothing: {:?}",
            self.plan()
        );
        self.write_all("pool", &self.pools)?;
        self.write_all("nodesubnet", self.subnets.values())?;
        for (node, network) in &self.networks {
            let own = self.folder.join(node);
            if !own.exists() {
                fs::create_dir(&own)?;
            }
            write(&own.join("nodenetwork.yaml"), network)?;
        }
        Ok(())
    }

    fn write_all<'a, K>(
        &self,
        kind: &str,
        objects: impl IntoIterator<Item = &'a K>,
    ) -> anyhow::Result<()>
    where
        K: Resource + Serialize + 'a,
    {
        for object in objects {
            let name = format!("{kind}-{}.yaml", object.name_any());
            write(&self.folder.join(name), object)?;
        }
        Ok(())
    }
}

/// Every agent reads all files when one has changed, so one that has not is left alone; and never sees half of one.
fn write(file: &Path, object: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(object)?;
    if fs::read_to_string(file).is_ok_and(|before| before == text) {
        return Ok(());
    }
    let aside = file.with_extension("new");
    fs::write(&aside, text)
        .and_then(|()| fs::rename(&aside, file))
        .with_context(|| format!("write {}", file.display()))
}
