//! The replacement of the API server and the operator: it stores users' objects and runs the operator's planning functions until they
//! plan no more writes.
//!
//! All objects are in memory; the objects that agents read are also files. Callers read the agents' statuses and report them here.

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

/// Limit of planning rounds. A plan can depend on the writes of the previous one.
const ROUNDS: usize = 10;

/// The objects of a lab.
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
    /// Names of NodeSubnets that their nodes do not need.
    surplus: BTreeSet<String>,
}

impl Store {
    /// An empty store with its files in `folder`. Existing files are deleted.
    pub fn new(folder: PathBuf) -> anyhow::Result<Self> {
        // An aborted run leaves files.
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

    /// The folder of the files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The NodeNetwork of a node.
    pub fn network(&self, node: &str) -> anyhow::Result<&NodeNetwork> {
        let network = self.networks.get(node);
        network.with_context(|| format!("the operator has planned no NodeNetwork for {node}"))
    }

    /// The number of assigned blocks.
    pub fn blocks(&self) -> usize {
        self.subnets.len()
    }

    /// The number of assigned blocks of a pool.
    pub fn blocks_of(&self, pool: &str) -> usize {
        let subnets = self.subnets.values();
        subnets.filter(|subnet| subnet.spec.pool == pool).count()
    }

    /// Replaces the spec of the mode that all pools use. The status stays.
    pub fn set_mode_spec(&mut self, spec: &serde_json::Value) -> anyhow::Result<()> {
        let edited = crate::lab::cluster::objects::mode(spec)?;
        let mode = self.modes.first_mut().context("there is no NetworkMode")?;
        mode.spec = edited.spec;
        let generation = mode.metadata.generation.unwrap_or_default();
        mode.metadata.generation = Some(generation + 1);
        Ok(())
    }

    /// The status of a BGPPeer.
    pub fn peer_status(&self, name: &str) -> Option<&BGPPeerStatus> {
        let mut peers = self.peers.iter();
        peers.find(|peer| peer.name_any() == name)?.status.as_ref()
    }

    /// Stores the status that an agent has written.
    pub fn set_node_status(&mut self, node: &str, status: NodeNetworkStatus) {
        if let Some(network) = self.networks.get_mut(node) {
            network.status = Some(status);
        }
    }

    /// Applies plans of the operator until there are no more writes, then writes the files of the agents.
    pub fn reconcile(&mut self) -> anyhow::Result<()> {
        for _ in 0..ROUNDS {
            self.update_surplus();
            let plan = self.plan();
            if !self.apply(&plan)? {
                return self.write();
            }
        }
        anyhow::bail!("the operator still plans writes after {ROUNDS} rounds")
    }

    /// Like the leading operator, but without a grace period.
    fn update_surplus(&mut self) {
        let subnets: Vec<_> = self.subnets.values().collect();
        let networks: Vec<_> = self.networks.values().collect();
        let utilization = Utilization::observe(&subnets, &networks);
        for subnet in subnets {
            match utilization.is_surplus(subnet) {
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

    /// Applies a plan. Returns whether it contained a write that can lead to another plan.
    fn apply(&mut self, plan: &Plan) -> anyhow::Result<bool> {
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
            "the operator assigns no blocks: {:?}",
            self.plan()
        );
        self.write_all("pool", &self.pools)?;
        self.write_all("nodesubnet", self.subnets.values())?;
        for (node, network) in &self.networks {
            let folder = self.folder.join(node);
            if !folder.exists() {
                fs::create_dir(&folder)?;
            }
            write(&folder.join("nodenetwork.yaml"), network)?;
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

/// Writes a file atomically, and only if its content changes: every agent reads all files again after each change.
fn write(file: &Path, object: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(object)?;
    if fs::read_to_string(file).is_ok_and(|before| before == text) {
        return Ok(());
    }
    let temporary = file.with_extension("new");
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, file))
        .with_context(|| format!("write {}", file.display()))
}
