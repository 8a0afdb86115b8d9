//! What is to be tried of a way that stands by: whether other nodes answer by it. That a link is there does not show that the network lets
//! its packets through.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use netweft_cni::ipam;
use netweft_crds::{NodeMode, StandbyStatus, Transport};
use netweft_netstate::model::LinkName;

use crate::desired::tunnel_address::tunnel_addresses;
use crate::inputs::{Inputs, RemoteBlock};

/// Nodes that one node asks at most.
const SAMPLE: usize = 16;

/// A way and whom to ask by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbePlan {
    /// Name of the NetworkMode.
    pub mode: String,
    /// The way.
    pub send: Transport,
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
    pub why_not: Option<String>,
}

/// An echo request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The link that it leaves by.
    pub link: LinkName,
    /// Its source: an address of a block, as pods have.
    pub from: Option<IpAddr>,
    /// Its destination.
    pub to: IpAddr,
}

impl ProbePlan {
    /// Nobody to ask.
    pub fn new(mode: &NodeMode) -> Self {
        Self {
            mode: mode.name.clone(),
            send: mode.send,
            targets: BTreeMap::new(),
        }
    }

    /// Ask the node of `block`, by `link`; `None`: by more than one, which are not told apart.
    pub fn add(
        &mut self,
        inputs: &Inputs,
        block: &RemoteBlock,
        link: Result<Option<LinkName>, String>,
    ) {
        let target = self.targets.entry(block.node.clone()).or_default();
        match link {
            Ok(Some(link)) => {
                let family = block.cidr.addr().is_ipv4();
                let mut own = tunnel_addresses(inputs).into_values();
                let from = own.find(|address| address.is_ipv4() == family);
                let to = ipam::tunnel_address(block.cidr);
                let probe = to.map(|to| Probe { link, from, to });
                target.probes.extend(probe);
            }
            Ok(None) => {}
            Err(why) => target.why_not = Some(why),
        }
    }

    /// The same for a part of the nodes, where there are many: for each node another.
    pub fn for_some_of(mut self, node: &str) -> Option<Self> {
        let lot = |peer: &str| {
            let mut hasher = DefaultHasher::new();
            (node, peer).hash(&mut hasher);
            hasher.finish()
        };
        let mut lots: Vec<u64> = self.targets.keys().map(|peer| lot(peer)).collect();
        lots.sort_unstable();
        if let Some(first_out) = lots.get(SAMPLE) {
            self.targets.retain(|peer, _| lot(peer) < *first_out);
        }
        (!self.targets.is_empty()).then_some(self)
    }

    /// What came of it, given what has been answered.
    #[must_use]
    pub fn status(&self, answered: &BTreeSet<Probe>, problem: Option<&str>) -> StandbyStatus {
        let silent: Vec<&String> = self
            .targets
            .iter()
            .filter(|(_, target)| !target.answers(answered))
            .map(|(node, _)| node)
            .collect();
        let why_not = self
            .targets
            .values()
            .find_map(|target| target.why_not.clone());
        let problem = problem.filter(|_| !silent.is_empty()).map(str::to_owned);
        StandbyStatus {
            mode: self.mode.clone(),
            way: self
                .send
                .way()
                .map(|way| way.to_string())
                .unwrap_or_default(),
            asked: i64::try_from(self.targets.len()).unwrap_or(i64::MAX),
            silent: silent.into_iter().cloned().collect(),
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
