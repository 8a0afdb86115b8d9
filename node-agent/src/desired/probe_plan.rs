//! What is to be tried of a way that stands by: whether other nodes answer by it. That a link is there does not show that the network lets
//! its packets through.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netweft_cni::block;
use netweft_crds::{NodeMode, ProbeProtocol, ProbeStatus, Transport};
use netweft_netstate::model::LinkName;
use sha2::{Digest, Sha256};

use crate::desired::tunnel_address::tunnel_addresses;
use crate::desired::unreachable::Unreachable;
use crate::inputs::{Inputs, RemoteBlock};

/// Nodes that one node asks at most.
const MAX_TARGETS: usize = 16;

/// A datapath in standby, and the nodes to probe over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbePlan {
    /// Name of the NetworkMode.
    pub mode: String,
    /// How packets travel.
    pub transport: Transport,
    /// How it is asked.
    pub probe: ProbeProtocol,
    /// Nodes by name.
    pub targets: BTreeMap<String, Target>,
}

/// A node that is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// What is sent. Of each family one of the probes has to be answered: which of a node's blocks is its oldest, and so holds its
    /// address, it knows alone.
    pub probes: BTreeSet<Probe>,
    /// Why there is nothing to send by.
    pub why_not: Option<Unreachable>,
}

/// A request to another node, and how it is sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The link that it leaves by.
    pub link: LinkName,
    /// Its source: an address of a block, as pods have.
    pub from: Option<IpAddr>,
    /// Its destination.
    pub to: IpAddr,
    /// By what. An answer to a request of another protocol does not count.
    pub probe: ProbeProtocol,
}

impl ProbePlan {
    /// Nobody to ask.
    pub fn new(mode: &NodeMode, transport: Transport) -> Self {
        Self {
            mode: mode.name.clone(),
            transport,
            probe: mode.probe,
            targets: BTreeMap::new(),
        }
    }

    /// Probes the node of `block` by `link`; `None`: by several links, which the probe does not distinguish.
    pub fn add(
        &mut self,
        inputs: &Inputs,
        block: &RemoteBlock,
        link: Result<Option<LinkName>, Unreachable>,
    ) {
        let probe = self.probe;
        if probe == ProbeProtocol::None {
            return;
        }
        let target = self.targets.entry(block.node.clone()).or_default();
        match link {
            Ok(Some(link)) => {
                let family = block.cidr.addr().is_ipv4();
                let mut own = tunnel_addresses(inputs).into_values();
                let from = own.find(|address| address.is_ipv4() == family);
                let to = block::tunnel_address(block.cidr);
                let probe = to.map(|to| Probe {
                    link,
                    from,
                    to,
                    probe,
                });
                target.probes.extend(probe);
            }
            Ok(None) => {}
            Err(why) => target.why_not = Some(why),
        }
    }

    /// The same for a part of the nodes, where there are many: for each node another. Which ones does not depend on the build, so that an
    /// update of the agent does not ask others.
    pub fn for_some_of(mut self, node: &str) -> Option<Self> {
        // A Node's name has no blank.
        let lot = |peer: &str| <[u8; 32]>::from(Sha256::digest(format!("{node} {peer}")));
        let mut lots: Vec<[u8; 32]> = self.targets.keys().map(|peer| lot(peer)).collect();
        lots.sort_unstable();
        if let Some(first_out) = lots.get(MAX_TARGETS) {
            self.targets.retain(|peer, _| lot(peer) < *first_out);
        }
        (!self.targets.is_empty()).then_some(self)
    }

    /// What came of it, given what has been answered. `port` is the UDP port of the agents.
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
            .filter(|(_, target)| !target.answers(answered))
            .map(|(node, _)| node)
            .collect();
        let why_not = self
            .targets
            .values()
            .find_map(|target| target.why_not.as_ref())
            .map(ToString::to_string);
        let problem = problem
            .filter(|_| !unreachable.is_empty())
            .map(str::to_owned);
        ProbeStatus {
            mode: self.mode.clone(),
            transport: self.transport.into(),
            probed: i64::try_from(self.targets.len()).unwrap_or(i64::MAX),
            unreachable: unreachable.into_iter().cloned().collect(),
            protocols: protocols(self.probe, port),
            message: why_not.or(problem),
        }
    }
}

impl Target {
    fn answers(&self, answered: &BTreeSet<Probe>) -> bool {
        let of_family = |ipv4: bool| {
            let mut asked = self
                .probes
                .iter()
                .filter(|it| it.to.is_ipv4() == ipv4)
                .peekable();
            asked.peek().is_none() || asked.any(|probe| answered.contains(probe))
        };
        self.why_not.is_none() && of_family(true) && of_family(false)
    }
}

/// How nodes are asked, in words.
fn protocols(probe: ProbeProtocol, port: u16) -> Vec<String> {
    let icmp = probe.uses_icmp().then(|| "ICMP echo".to_owned());
    let udp = probe.uses_udp().then(|| format!("UDP port {port}"));
    icmp.into_iter().chain(udp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names are those with the least SHA-256 of `worker-1 NAME`, computed by another program.
    #[test]
    fn probe_target_choice_is_stable_across_builds() {
        let names = (2..=40).map(|n| (format!("worker-{n}"), Target::default()));
        let probe_plan = ProbePlan {
            mode: "default".into(),
            transport: Transport::Direct,
            probe: ProbeProtocol::Auto,
            targets: names.collect(),
        };
        let chosen = probe_plan.for_some_of("worker-1").unwrap().targets;
        let chosen: Vec<String> = chosen.into_keys().collect();
        assert_eq!(
            chosen,
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
        for (probe, told) in [
            (ProbeProtocol::Auto, &["ICMP echo", "UDP port 9471"][..]),
            (ProbeProtocol::Icmp, &["ICMP echo"]),
            (ProbeProtocol::Udp, &["UDP port 9471"]),
            (ProbeProtocol::None, &[]),
        ] {
            assert_eq!(protocols(probe, 9471), told);
        }
    }
}
