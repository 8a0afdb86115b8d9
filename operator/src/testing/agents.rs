//! Reports of agents for tests.

use kube::ResourceExt;
use netweft_crds::condition::READY;
use netweft_crds::{
    BlockUsage, FoundAddress, IpFamily, LinkStatus, NodeNetworkStatus, ProbeStatus,
};

use crate::testing::{Cluster, condition};

impl Cluster {
    /// Every agent acknowledges its NodeNetwork and reports `pods` pods in each block of up to 64 addresses.
    pub fn agents_report(&mut self, pods: i64) {
        for network in &mut self.networks {
            let usage = |cidr: &ipnet::IpNet| BlockUsage {
                cidr: *cidr,
                used: pods,
                free: 61 - pods,
            };
            let tunnels = network.spec.subnets.iter().map(|cidr| LinkStatus {
                name: "nw-vx4096".to_owned(),
                mtu: 1450,
                address: Some(cidr.addr()),
            });
            let status = network.status.get_or_insert_default();
            let assigned = status
                .conditions
                .iter()
                .filter(|c| c.type_ != READY)
                .cloned();
            let ready = condition(READY, "True", "Programmed");
            let sessions = std::mem::take(&mut status.sessions);
            let addresses = std::mem::take(&mut status.addresses);
            *status = NodeNetworkStatus {
                sessions,
                addresses,
                observed_generation: network.metadata.generation,
                subnets: network.spec.subnets.iter().map(usage).collect(),
                links: tunnels.collect(),
                conditions: assigned.chain([ready]).collect(),
                ..NodeNetworkStatus::default()
            };
        }
    }

    /// The agent of a node reports these links with their addresses, and acknowledges its NodeNetwork.
    pub fn agent_reports_addresses(&mut self, node: &str, found: &[(&str, &str)]) {
        let networks = &mut self.networks;
        let network = networks.iter_mut().find(|it| it.name_any() == node);
        let network = network.unwrap();
        let selectors = network.spec.address_selectors.clone().unwrap_or_default();
        let status = network.status.get_or_insert_default();
        status.observed_generation = network.metadata.generation;
        let found = found.iter().map(|(interface, address)| {
            let address = address.parse().unwrap();
            let selector = selectors.of(IpFamily::of(address));
            FoundAddress {
                address,
                interface: (*interface).to_owned(),
                reaches: selector.and_then(|selector| selector.reaches),
            }
        });
        status.addresses = found.collect();
    }

    /// Every agent acknowledges its NodeNetwork, and reports that probes of `unreachable` fail over standby datapaths.
    pub fn agents_probe(&mut self, unreachable: &[&str]) {
        self.agents_report(0);
        for network in &mut self.networks {
            let own = network.name_any();
            let others = unreachable.iter().filter(|name| **name != own);
            let unreachable: Vec<String> = others.map(|name| (*name).to_owned()).collect();
            let standby = network
                .spec
                .modes
                .iter()
                .filter(|mode| !mode.standby_pools.is_empty());
            let probes = standby.map(|mode| ProbeStatus {
                mode: mode.name.clone(),
                transport: mode.transport.get().unwrap().into(),
                probed: 1,
                unreachable: unreachable.clone(),
                protocols: vec!["ICMP echo".to_owned(), "UDP port 9471".to_owned()],
                message: None,
            });
            network.status.get_or_insert_default().probes = probes.collect();
        }
    }

    /// Agents acknowledge and probe until a rollout is complete.
    pub fn finish_rollout(&mut self) {
        for _ in 0..self.nodes.len() + 5 {
            self.reconcile();
            self.agents_probe(&[]);
        }
    }
}
