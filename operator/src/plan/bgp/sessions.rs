//! [`SessionBuilder`]: the BGP sessions of all nodes.
//!
//! Sessions of BGPPeers come first, oldest BGPPeer first, then those of the NetworkMode: the mesh, and sessions with
//! route reflectors. Sessions between nodes are created in pairs, one at each end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kube::core::SelectorExt;
use netweft_crds::{IpFamily, NodeBgp, Session};

use crate::plan::bgp::peer::{Peer, Router, Target};
use crate::plan::bgp::speakers::Speaker;
use crate::plan::bgp::underlay::{SessionDefaults, Underlay};

/// Maximum number of node pairs with sessions of one mode or BGPPeer: a mesh of 500 nodes. The youngest nodes beyond
/// are left out and reported. An unlimited mesh would overload the API server and the nodes.
const MAX_PAIRS: usize = 500 * 499 / 2;
/// Maximum number of sessions of a node with other nodes: they and their states must fit into the NodeNetwork.
const MAX_SESSIONS: usize = 2000;
/// Hops between two nodes with different AS numbers: any. The agents know which nodes share a link.
const ANY_HOPS: u8 = 255;

/// Builds the sessions of all nodes.
pub struct SessionBuilder<'a> {
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
    /// Sessions of BGPPeers: address and port of the peer, and the name of the BGPPeer.
    of_peers: BTreeMap<(IpAddr, u16), String>,
}

/// The nodes of a BGPPeer.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Number of nodes that `nodeSelector` selects.
    pub selected: usize,
    /// Number of nodes that `peerSelector` selects; `None` for a router.
    pub selected_peers: Option<usize>,
    /// Selected nodes without a session, because an address of its family is missing.
    pub without_address: BTreeSet<String>,
    /// An older BGPPeer with the same session, and the node with that session.
    pub conflict: Option<(String, String)>,
    /// Nodes without some sessions because of the limits.
    pub left_out: Vec<String>,
}

/// Creates the sessions between nodes for a BGPPeer or the NetworkMode.
struct SessionPairs<'p> {
    /// Prefix of the sessions' names.
    prefix: &'p str,
    defaults: &'p SessionDefaults,
    peer: Option<&'p Peer>,
    /// Port that nodes listen on.
    port: u16,
    families: &'p BTreeSet<IpFamily>,
}

/// The endpoints of a session, from the view of one node.
struct Endpoints {
    name: String,
    bgp_peer: Option<String>,
    local: (IpAddr, u32),
    peer: (IpAddr, u32),
    port: u16,
    node: bool,
    client: bool,
}

impl SessionDefaults {
    fn session(&self, endpoints: Endpoints) -> Session {
        let (local, local_as) = endpoints.local;
        let (peer, peer_as) = endpoints.peer;
        let any = (endpoints.node && self.ttl_security.is_none()).then_some(ANY_HOPS);
        Session {
            name: endpoints.name,
            bgp_peer: endpoints.bgp_peer,
            peer,
            port: endpoints.port,
            local,
            local_as,
            peer_as,
            node: endpoints.node,
            reflector_client: endpoints.client && local_as == peer_as,
            password_key: self.password_key.clone(),
            hold_time: self.hold_time,
            keepalive_time: self.keepalive_time,
            connect_retry_time: self.connect_retry_time,
            // iBGP sessions allow any number of hops anyway.
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

impl<'a> SessionBuilder<'a> {
    /// All nodes without sessions.
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
            of_peers: BTreeMap::new(),
        };
        Self {
            underlay,
            families,
            nodes: speakers.iter().map(node).collect(),
            addresses: addresses.collect(),
        }
    }

    /// Creates the sessions of a BGPPeer. Older BGPPeers must come first.
    pub fn add_peer(&mut self, peer: &Peer) -> Coverage {
        let others = match &peer.target {
            Target::Router(router) => return self.add_router(peer, router),
            Target::Nodes(others) => others,
        };
        let per_node = self.per_node(|speaker| {
            (
                peer.nodes.matches(speaker.labels),
                others.matches(speaker.labels),
            )
        });
        let families = self.families.clone();
        let session_pairs = SessionPairs {
            prefix: &peer.name,
            defaults: &peer.defaults,
            peer: Some(peer),
            port: self.underlay.listen_port,
            families: &families,
        };
        let has_session =
            |one: &(bool, bool), other: &(bool, bool)| one.0 && other.1 || other.0 && one.1;
        let mut coverage = self.add_pairs(&session_pairs, &per_node, has_session);
        coverage.selected = per_node.iter().filter(|value| value.0).count();
        coverage.selected_peers = Some(per_node.iter().filter(|value| value.1).count());
        coverage
    }

    /// Creates the sessions of the NetworkMode. Returns the nodes that are left out.
    pub fn add_mode(&mut self) -> Vec<String> {
        let underlay = self.underlay;
        let reflects = self.per_node(|speaker| speaker.cluster_id.is_some());
        let families = self.families.clone();
        let session_pairs = SessionPairs {
            prefix: "mesh",
            defaults: &underlay.defaults,
            peer: None,
            port: underlay.listen_port,
            families: &families,
        };
        let has_session = |one: &bool, other: &bool| underlay.mesh || *one || *other;
        self.add_pairs(&session_pairs, &reflects, has_session)
            .left_out
    }

    /// The BGP configuration of every node, by name.
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

    /// A value for each node, in the order of the nodes.
    fn per_node<T>(&self, of: impl Fn(&Speaker<'_>) -> T) -> Vec<T> {
        self.nodes.iter().map(|node| of(node.speaker)).collect()
    }

    fn add_router(&mut self, peer: &Peer, router: &Router) -> Coverage {
        let mut coverage = Coverage::default();
        let family = IpFamily::of(router.address);
        let is_node = self.addresses.contains(&router.address);
        for node in &mut self.nodes {
            let (speaker, own) = (node.speaker, node.speaker.addresses.of(family));
            if !peer.nodes.matches(speaker.labels) {
                continue;
            }
            coverage.selected += 1;
            if own == Some(router.address) {
                continue;
            }
            let Some(local) = router.source.or(own) else {
                coverage.without_address.insert(speaker.name.to_owned());
                continue;
            };
            node.add_of_peer(
                peer.defaults.session(Endpoints {
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

    /// Creates sessions between all pairs of nodes for which `has_session` returns true.
    fn add_pairs<T>(
        &mut self,
        session_pairs: &SessionPairs<'_>,
        per_node: &[T],
        has_session: impl Fn(&T, &T) -> bool,
    ) -> Coverage {
        let mut coverage = Coverage::default();
        let mut budget = MAX_PAIRS;
        for (number, value) in per_node.iter().enumerate() {
            let (older, rest) = self.nodes.split_at_mut(number);
            let Some(younger) = rest.first_mut() else {
                break;
            };
            let mut left_out = false;
            for (older, _) in older
                .iter_mut()
                .zip(per_node)
                .filter(|(_, m)| has_session(m, value))
            {
                if budget == 0 || older.is_full() || younger.is_full() {
                    left_out = true;
                    continue;
                }
                budget -= 1;
                session_pairs.add_pair(older, younger, &mut coverage);
            }
            if left_out {
                coverage.left_out.push(younger.speaker.name.to_owned());
            }
        }
        coverage
    }
}

impl SessionPairs<'_> {
    /// Creates a session between two nodes in each family that both have.
    fn add_pair(&self, one: &mut Node<'_>, other: &mut Node<'_>, coverage: &mut Coverage) {
        let mut has_common_family = false;
        for family in self.families {
            let first = self.session(one.speaker, other.speaker, *family);
            let second = self.session(other.speaker, one.speaker, *family);
            let (Some(first), Some(second)) = (first, second) else {
                continue;
            };
            has_common_family = true;
            if self.peer.is_none() {
                one.add_of_mode(first);
                other.add_of_mode(second);
            } else if one.is_free(&first, coverage) && other.is_free(&second, coverage) {
                one.add_of_peer(first, coverage);
                other.add_of_peer(second, coverage);
            }
        }
        if !has_common_family {
            coverage.without_address.insert(one.speaker.name.to_owned());
            coverage
                .without_address
                .insert(other.speaker.name.to_owned());
        }
    }

    /// The session of the node `own` with the node `other`.
    fn session(&self, own: &Speaker<'_>, other: &Speaker<'_>, family: IpFamily) -> Option<Session> {
        let (local, peer) = (own.addresses.of(family)?, other.addresses.of(family)?);
        // Nodes with the same address cannot reach each other.
        if local == peer {
            return None;
        }
        let as_number = |speaker: &Speaker<'_>| {
            let selected = self.peer.filter(|peer| peer.nodes.matches(speaker.labels));
            let local_as = selected.and_then(|peer| peer.local_as);
            local_as.unwrap_or(speaker.as_number)
        };
        let suffix = match family {
            IpFamily::Ipv4 => "",
            IpFamily::Ipv6 => "-ipv6",
        };
        Some(self.defaults.session(Endpoints {
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
        self.sessions.len() >= MAX_SESSIONS
    }

    /// Whether no older BGPPeer has a session with the same address and port. If one has, the conflict is recorded.
    fn is_free(&self, session: &Session, coverage: &mut Coverage) -> bool {
        let holder = self.of_peers.get(&(session.peer, session.port));
        if let Some(holder) = holder {
            let found = || (holder.clone(), self.speaker.name.to_owned());
            coverage.conflict.get_or_insert_with(found);
        }
        holder.is_none()
    }

    /// Adds the session of a BGPPeer, unless it conflicts.
    fn add_of_peer(&mut self, session: Session, coverage: &mut Coverage) {
        if self.is_free(&session, coverage) {
            let holder = session.bgp_peer.clone().unwrap_or_default();
            self.of_peers.insert((session.peer, session.port), holder);
            self.sessions.push(session);
        }
    }

    /// Adds a session of the NetworkMode, unless a BGPPeer has a session with the same address.
    fn add_of_mode(&mut self, session: Session) {
        let at = (session.peer, 0)..=(session.peer, u16::MAX);
        if self.of_peers.range(at).next().is_none() {
            self.sessions.push(session);
        }
    }
}

/// Sorted, with unique names: the BGPPeer `a-b` with the node `c` and the BGPPeer `a` with the node `b-c` have the same
/// name.
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
