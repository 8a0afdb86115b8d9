//! [`Wiring`]: who has a session with whom.
//!
//! BGPPeers come first, the oldest before the others, then the NetworkMode's own sessions: the mesh, and those of reflectors.
//! Sessions between nodes are made in pairs, one at each end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kube::core::SelectorExt;
use netweft_crds::{IpFamily, NodeBgp, Session};

use crate::plan::bgp::peer::{Peer, Router, Target};
use crate::plan::bgp::speakers::Speaker;
use crate::plan::bgp::underlay::{SessionDefaults, Underlay};

/// Most pairs of nodes that one mode or BGPPeer makes sessions between: a mesh of 500 nodes. Beyond, the youngest are left out
/// and named; a mesh that grows without end would take API server and nodes with it.
const PAIRS: usize = 500 * 499 / 2;
/// Most sessions of one node with others: those and their states have to fit into its NodeNetwork.
const SESSIONS: usize = 2000;
/// Hops between two nodes with different AS numbers: any. Which of them share a link is known to their agents.
const ANY_HOPS: u8 = 255;

/// Sessions in the making.
pub struct Wiring<'a> {
    underlay: &'a Underlay,
    families: BTreeSet<IpFamily>,
    /// Oldest first.
    nodes: Vec<Node<'a>>,
    addresses: BTreeSet<IpAddr>,
}

/// A speaker and its sessions.
struct Node<'a> {
    speaker: &'a Speaker<'a>,
    sessions: Vec<Session>,
    /// Sessions that BGPPeers ask for: peer's address and port, and the BGPPeer.
    asked: BTreeMap<(IpAddr, u16), String>,
}

/// What a BGPPeer makes.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// How many nodes `nodeSelector` chooses.
    pub chosen: usize,
    /// How many nodes `peerSelector` chooses; `None` for a router.
    pub partners: Option<usize>,
    /// Chosen nodes without a session, for want of an address of its family.
    pub lacking: BTreeSet<String>,
    /// An older BGPPeer that has a session already, and the node that has it.
    pub conflict: Option<(String, String)>,
    /// Nodes without a session because there would be too many.
    pub left_out: Vec<String>,
}

/// Who asks for sessions between nodes.
struct Asker<'p> {
    /// What their names begin with.
    prefix: &'p str,
    defaults: &'p SessionDefaults,
    peer: Option<&'p Peer>,
    /// Where nodes listen.
    port: u16,
    families: &'p BTreeSet<IpFamily>,
}

/// The two ends of a session, as one of them sees it.
struct Ends {
    name: String,
    bgp_peer: Option<String>,
    local: (IpAddr, u32),
    peer: (IpAddr, u32),
    port: u16,
    node: bool,
    client: bool,
}

impl SessionDefaults {
    fn session(&self, ends: Ends) -> Session {
        let (local, local_as) = ends.local;
        let (peer, peer_as) = ends.peer;
        let any = (ends.node && self.ttl_security.is_none()).then_some(ANY_HOPS);
        Session {
            name: ends.name,
            bgp_peer: ends.bgp_peer,
            peer,
            port: ends.port,
            local,
            local_as,
            peer_as,
            node: ends.node,
            reflector_client: ends.client && local_as == peer_as,
            password_key: self.password_key.clone(),
            hold_time: self.hold_time,
            keepalive_time: self.keepalive_time,
            connect_retry_time: self.connect_retry_time,
            // An iBGP session may have any number of hops as it is.
            multihop: (local_as != peer_as)
                .then_some(self.multihop.or(any))
                .flatten(),
            ttl_security: self.ttl_security,
            bfd: self.bfd.clone(),
            graceful_restart: self.graceful_restart.clone(),
            max_prefixes: self.max_prefixes,
            next_hop_mode: self.next_hop_mode,
            communities: self.communities.clone(),
            filters: self.filters.clone(),
        }
    }
}

impl<'a> Wiring<'a> {
    /// Nodes without sessions.
    #[must_use]
    pub fn new(
        underlay: &'a Underlay,
        families: BTreeSet<IpFamily>,
        speakers: &'a [Speaker<'a>],
    ) -> Self {
        let addresses = speakers.iter().flat_map(|speaker| speaker.addresses.iter());
        let node = |speaker| Node {
            speaker,
            sessions: Vec::new(),
            asked: BTreeMap::new(),
        };
        Self {
            underlay,
            families,
            nodes: speakers.iter().map(node).collect(),
            addresses: addresses.collect(),
        }
    }

    /// Makes the sessions that a BGPPeer asks for; older BGPPeers have been here before.
    pub fn peer(&mut self, peer: &Peer) -> Coverage {
        let others = match &peer.target {
            Target::Router(router) => return self.router(peer, router),
            Target::Nodes(others) => others,
        };
        let marks = self.marks(|speaker| {
            (
                peer.nodes.matches(speaker.labels),
                others.matches(speaker.labels),
            )
        });
        let families = self.families.clone();
        let asker = Asker {
            prefix: &peer.name,
            defaults: &peer.defaults,
            peer: Some(peer),
            port: self.underlay.listen_port,
            families: &families,
        };
        let wanted =
            |one: &(bool, bool), other: &(bool, bool)| one.0 && other.1 || other.0 && one.1;
        let mut coverage = self.pairs(&asker, &marks, wanted);
        coverage.chosen = marks.iter().filter(|mark| mark.0).count();
        coverage.partners = Some(marks.iter().filter(|mark| mark.1).count());
        coverage
    }

    /// Makes the sessions that the NetworkMode asks for; returns the nodes that are left out.
    pub fn mode(&mut self) -> Vec<String> {
        let underlay = self.underlay;
        let reflects = self.marks(|speaker| speaker.cluster_id.is_some());
        let families = self.families.clone();
        let asker = Asker {
            prefix: "mesh",
            defaults: &underlay.defaults,
            peer: None,
            port: underlay.listen_port,
            families: &families,
        };
        let wanted = |one: &bool, other: &bool| underlay.mesh || *one || *other;
        self.pairs(&asker, &reflects, wanted).left_out
    }

    /// Every node's part, by name.
    #[must_use]
    pub fn finish(self) -> BTreeMap<String, NodeBgp> {
        let listen_port = self.underlay.listen_port;
        let nodes = self.nodes.into_iter();
        nodes
            .map(
                |Node {
                     speaker, sessions, ..
                 }| {
                    let bgp = NodeBgp {
                        as_number: speaker.as_number,
                        router_id: speaker.router_id,
                        listen_port,
                        cluster_id: speaker.cluster_id,
                        sessions: by_unique_name(sessions),
                    };
                    (speaker.name.to_owned(), bgp)
                },
            )
            .collect()
    }

    /// Something about each node, in their order.
    fn marks<T>(&self, of: impl Fn(&Speaker<'_>) -> T) -> Vec<T> {
        self.nodes.iter().map(|node| of(node.speaker)).collect()
    }

    fn router(&mut self, peer: &Peer, router: &Router) -> Coverage {
        let mut coverage = Coverage::default();
        let family = IpFamily::of(router.address);
        let is_node = self.addresses.contains(&router.address);
        for node in &mut self.nodes {
            let (speaker, own) = (node.speaker, node.speaker.addresses.of(family));
            if !peer.nodes.matches(speaker.labels) {
                continue;
            }
            coverage.chosen += 1;
            if own == Some(router.address) {
                continue;
            }
            let Some(local) = router.source.or(own) else {
                coverage.lacking.insert(speaker.name.to_owned());
                continue;
            };
            node.ask(
                peer.defaults.session(Ends {
                    name: peer.name.clone(),
                    bgp_peer: Some(peer.name.clone()),
                    local: (local, peer.local_as.unwrap_or(speaker.as_number)),
                    peer: (router.address, router.as_number),
                    port: router.port,
                    node: is_node,
                    client: false,
                }),
                &mut coverage,
            );
        }
        coverage
    }

    /// Sessions between all pairs that are `wanted`, by what is marked about the two.
    fn pairs<T>(
        &mut self,
        asker: &Asker<'_>,
        marks: &[T],
        wanted: impl Fn(&T, &T) -> bool,
    ) -> Coverage {
        let mut coverage = Coverage::default();
        let mut budget = PAIRS;
        for (number, mark) in marks.iter().enumerate() {
            let (older, rest) = self.nodes.split_at_mut(number);
            let Some(younger) = rest.first_mut() else {
                break;
            };
            let mut left_out = false;
            for (older, _) in older.iter_mut().zip(marks).filter(|(_, m)| wanted(m, mark)) {
                if budget == 0 || older.is_full() || younger.is_full() {
                    left_out = true;
                    continue;
                }
                budget -= 1;
                asker.pair(older, younger, &mut coverage);
            }
            if left_out {
                coverage.left_out.push(younger.speaker.name.to_owned());
            }
        }
        coverage
    }
}

impl Asker<'_> {
    /// A session between two nodes in each family that both have.
    fn pair(&self, one: &mut Node<'_>, other: &mut Node<'_>, coverage: &mut Coverage) {
        let mut met = false;
        for family in self.families {
            let first = self.session(one.speaker, other.speaker, *family);
            let second = self.session(other.speaker, one.speaker, *family);
            let (Some(first), Some(second)) = (first, second) else {
                continue;
            };
            met = true;
            if self.peer.is_none() {
                one.fall_back_on(first);
                other.fall_back_on(second);
            } else if one.is_free(&first, coverage) && other.is_free(&second, coverage) {
                one.ask(first, coverage);
                other.ask(second, coverage);
            }
        }
        if !met {
            coverage.lacking.insert(one.speaker.name.to_owned());
            coverage.lacking.insert(other.speaker.name.to_owned());
        }
    }

    /// The session of the node `own` with the node `other`.
    fn session(&self, own: &Speaker<'_>, other: &Speaker<'_>, family: IpFamily) -> Option<Session> {
        let (local, peer) = (own.addresses.of(family)?, other.addresses.of(family)?);
        // Of two nodes that state one address, neither can reach the other.
        if local == peer {
            return None;
        }
        let as_number = |speaker: &Speaker<'_>| {
            let asks = self.peer.filter(|peer| peer.nodes.matches(speaker.labels));
            let stated = asks.and_then(|peer| peer.local_as);
            stated.unwrap_or(speaker.as_number)
        };
        let suffix = match family {
            IpFamily::Ipv4 => "",
            IpFamily::Ipv6 => "-ipv6",
        };
        Some(self.defaults.session(Ends {
            name: format!("{}-{}{suffix}", self.prefix, other.name),
            bgp_peer: self.peer.map(|peer| peer.name.clone()),
            local: (local, as_number(own)),
            peer: (peer, as_number(other)),
            port: self.port,
            node: true,
            client: own.cluster_id.is_some() && other.cluster_id.is_none(),
        }))
    }
}

impl Node<'_> {
    fn is_full(&self) -> bool {
        self.sessions.len() >= SESSIONS
    }

    /// Whether no older BGPPeer has a session with the same address and port; if one has, that is noted.
    fn is_free(&self, session: &Session, coverage: &mut Coverage) -> bool {
        let by = self.asked.get(&(session.peer, session.port));
        if let Some(by) = by {
            let found = || (by.clone(), self.speaker.name.to_owned());
            coverage.conflict.get_or_insert_with(found);
        }
        by.is_none()
    }

    /// Adds a session that a BGPPeer asks for, if it can have it.
    fn ask(&mut self, session: Session, coverage: &mut Coverage) {
        if self.is_free(&session, coverage) {
            let by = session.bgp_peer.clone().unwrap_or_default();
            self.asked.insert((session.peer, session.port), by);
            self.sessions.push(session);
        }
    }

    /// Adds a session of the NetworkMode's, unless a BGPPeer has taken its place.
    fn fall_back_on(&mut self, session: Session) {
        let at = (session.peer, 0)..=(session.peer, u16::MAX);
        if self.asked.range(at).next().is_none() {
            self.sessions.push(session);
        }
    }
}

/// Sorted, and no two of one name: the BGPPeer `a-b` with the node `c` and the BGPPeer `a` with the node `b-c` have one.
fn by_unique_name(mut sessions: Vec<Session>) -> Vec<Session> {
    let mut names = BTreeSet::new();
    for session in &mut sessions {
        let mut name = session.name.clone();
        let mut number = 2;
        while !names.insert(name.clone()) {
            name = format!("{}-{number}", session.name);
            number += 1;
        }
        session.name = name;
    }
    sessions.sort_by(|one, other| one.name.cmp(&other.name));
    sessions
}
