//! The probes over a standby datapath: whether other nodes are reachable by it. That its link exists does not show that the
//! network forwards its packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netweft_cni::block;
use netweft_crds::{NodeMode, ProbeProtocol, ProbeStatus, Transport};
use netweft_netstate::model::LinkName;
use sha2::{Digest, Sha256};

use crate::desired::tunnel_address::tunnel_addresses;
use crate::desired::unreachable::Unreachable;
use crate::inputs::{Inputs, RemoteBlock};

/// Maximum number of nodes that one node probes.
const MAX_TARGETS: usize = 16;

/// A standby datapath, and the nodes to probe over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbePlan {
    /// Name of the NetworkMode.
    pub mode: String,
    /// The transport of the datapath.
    pub transport: Transport,
    /// The protocol of the probes.
    pub protocol: ProbeProtocol,
    /// Nodes by name.
    pub targets: BTreeMap<String, Target>,
}

/// A node to probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The probes: one per block of the node. One reply per family is enough, because only the oldest block of a pool has the
    /// tunnel address, and other nodes do not know which block that is.
    pub probes: BTreeSet<Probe>,
    /// Why the node cannot be probed.
    pub unreachable: Option<Unreachable>,
}

/// A request to another node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The egress link.
    pub link: LinkName,
    /// The source: an address in a block of this node, as pods have.
    pub from: Option<IpAddr>,
    /// The destination.
    pub to: IpAddr,
    /// The protocol. A reply by another protocol does not count.
    pub protocol: ProbeProtocol,
}

impl ProbePlan {
    /// A plan without targets.
    pub fn new(mode: &NodeMode, transport: Transport) -> Self {
        Self {
            mode: mode.name.clone(),
            transport,
            protocol: mode.probe,
            targets: BTreeMap::new(),
        }
    }

    /// Adds a probe of the node of `block` by `link`. `None`: the route has several links, which a probe cannot distinguish.
    pub fn add(
        &mut self,
        inputs: &Inputs,
        block: &RemoteBlock,
        link: Result<Option<LinkName>, Unreachable>,
    ) {
        let protocol = self.protocol;
        if protocol == ProbeProtocol::None {
            return;
        }
        let target = self.targets.entry(block.node.clone()).or_default();
        match link {
            Ok(Some(link)) => {
                let is_ipv4 = block.cidr.addr().is_ipv4();
                let mut own = tunnel_addresses(inputs).into_values();
                let from = own.find(|address| address.is_ipv4() == is_ipv4);
                let to = block::tunnel_address(block.cidr);
                let probe = to.map(|to| Probe {
                    link,
                    from,
                    to,
                    protocol,
                });
                target.probes.extend(probe);
            }
            Ok(None) => {}
            Err(unreachable) => target.unreachable = Some(unreachable),
        }
    }

    /// The plan with a sample of the targets, if there are many. Each `node` has another sample. The sample does not depend on
    /// the build, so that an update of the agent keeps it.
    pub fn sampled(mut self, node: &str) -> Option<Self> {
        // The name of a Node contains no space.
        let rank = |peer: &str| <[u8; 32]>::from(Sha256::digest(format!("{node} {peer}")));
        let mut ranks: Vec<[u8; 32]> = self.targets.keys().map(|peer| rank(peer)).collect();
        ranks.sort_unstable();
        if let Some(limit) = ranks.get(MAX_TARGETS) {
            self.targets.retain(|peer, _| rank(peer) < *limit);
        }
        (!self.targets.is_empty()).then_some(self)
    }

    /// The status of the probes. `answered` are the probes with a reply, `port` is the UDP port of the agents.
    #[must_use]
    pub fn status(
        &self,
        answered: &BTreeSet<Probe>,
        problem: Option<&str>,
        port: u16,
    ) -> ProbeStatus {
        let unreachable: Vec<&String> = self
            .targets
            .iter()
            .filter(|(_, target)| !target.is_reachable(answered))
            .map(|(node, _)| node)
            .collect();
        let not_probed = self
            .targets
            .values()
            .find_map(|target| target.unreachable.as_ref())
            .map(ToString::to_string);
        let problem = problem
            .filter(|_| !unreachable.is_empty())
            .map(str::to_owned);
        ProbeStatus {
            mode: self.mode.clone(),
            transport: self.transport.into(),
            probed: i64::try_from(self.targets.len()).unwrap_or(i64::MAX),
            unreachable: unreachable.into_iter().cloned().collect(),
            protocols: protocols(self.protocol, port),
            message: not_probed.or(problem),
        }
    }
}

impl Target {
    /// Whether one probe of each family has a reply.
    fn is_reachable(&self, answered: &BTreeSet<Probe>) -> bool {
        let is_reachable_by = |ipv4: bool| {
            let mut probes = self
                .probes
                .iter()
                .filter(|it| it.to.is_ipv4() == ipv4)
                .peekable();
            probes.peek().is_none() || probes.any(|probe| answered.contains(probe))
        };
        self.unreachable.is_none() && is_reachable_by(true) && is_reachable_by(false)
    }
}

/// The protocols of the probes, for the status.
fn protocols(protocol: ProbeProtocol, port: u16) -> Vec<String> {
    let icmp = protocol.uses_icmp().then(|| "ICMP echo".to_owned());
    let udp = protocol.uses_udp().then(|| format!("UDP port {port}"));
    icmp.into_iter().chain(udp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names are those with the smallest SHA-256 of `worker-1 NAME`, computed by another program.
    #[test]
    fn probe_target_choice_is_stable_across_builds() {
        let names = (2..=40).map(|n| (format!("worker-{n}"), Target::default()));
        let probe_plan = ProbePlan {
            mode: "default".into(),
            transport: Transport::Direct,
            protocol: ProbeProtocol::Auto,
            targets: names.collect(),
        };
        let sample = probe_plan.sampled("worker-1").unwrap().targets;
        let sample: Vec<String> = sample.into_keys().collect();
        assert_eq!(
            sample,
            [
                "worker-11",
                "worker-13",
                "worker-14",
                "worker-17",
                "worker-18",
                "worker-2",
                "worker-20",
                "worker-23",
                "worker-24",
                "worker-25",
                "worker-26",
                "worker-27",
                "worker-29",
                "worker-34",
                "worker-35",
                "worker-38"
            ]
        );
    }

    #[test]
    fn probe_protocols_are_listed_in_status() {
        for (protocol, expected) in [
            (ProbeProtocol::Auto, &["ICMP echo", "UDP port 9471"][..]),
            (ProbeProtocol::Icmp, &["ICMP echo"]),
            (ProbeProtocol::Udp, &["UDP port 9471"]),
            (ProbeProtocol::None, &[]),
        ] {
            assert_eq!(protocols(protocol, 9471), expected);
        }
    }
}
