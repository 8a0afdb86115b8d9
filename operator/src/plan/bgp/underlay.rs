//! [`Underlay`]: how nodes speak BGP, as a NetworkMode says it, checked.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use kube::core::{Selector, SelectorExt};
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{AsNumberRule, Bfd, Filters, GracefulRestart, NextHopMode, RouteReflectorRule};

use crate::plan::validate::ip_pool::selector;

/// Default for the most prefixes that a session accepts.
const MAX_PREFIXES: u32 = 20_000;

/// How nodes speak BGP.
#[derive(Clone, Debug, PartialEq)]
pub struct Underlay {
    /// TCP port on which nodes listen.
    pub listen_port: u16,
    /// Whether every node has a session with every other.
    pub mesh: bool,
    /// What the mode's own sessions have in common.
    pub defaults: SessionDefaults,
    as_number: u32,
    as_numbers: Vec<(Selector, u32)>,
    reflectors: Vec<(Selector, Ipv4Addr)>,
}

/// What is said about a session besides who its ends are.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionDefaults {
    /// Time without a message after which the session is dead.
    pub hold_time: kube::core::Duration,
    /// Time between keepalives.
    pub keepalive_time: kube::core::Duration,
    /// Time between attempts to connect.
    pub connect_retry_time: kube::core::Duration,
    /// Hops to an eBGP peer.
    pub multihop: Option<u8>,
    /// Hops that packets have come.
    pub ttl_security: Option<u8>,
    /// Bidirectional forwarding detection.
    pub bfd: Option<Bfd>,
    /// Graceful restart.
    pub graceful_restart: GracefulRestart,
    /// Largest number of prefixes taken.
    pub max_prefixes: u32,
    /// Next hop in what is announced.
    pub next_hop_mode: NextHopMode,
    /// Communities added to what is announced.
    pub communities: Vec<String>,
    /// What is taken and announced.
    pub filters: Filters,
    /// Key of the password in the agents' Secret.
    pub password_key: Option<String>,
}

impl SessionDefaults {
    /// The limit where `stated` is none.
    #[must_use]
    pub fn max_prefixes(stated: Option<u32>) -> u32 {
        stated.unwrap_or(MAX_PREFIXES)
    }
}

impl Underlay {
    /// AS number of a node with these labels; the first rule that matches counts.
    #[must_use]
    pub fn as_number(&self, labels: &BTreeMap<String, String>) -> u32 {
        first_match(&self.as_numbers, labels).unwrap_or(self.as_number)
    }

    /// The cluster that a node with these labels reflects for (RFC 4456), if it does.
    #[must_use]
    pub fn cluster_id(&self, labels: &BTreeMap<String, String>) -> Option<Ipv4Addr> {
        first_match(&self.reflectors, labels)
    }
}

fn first_match<T: Copy>(rules: &[(Selector, T)], labels: &BTreeMap<String, String>) -> Option<T> {
    let mut rules = rules.iter();
    rules
        .find(|(nodes, _)| nodes.matches(labels))
        .map(|(_, value)| *value)
}

/// Checks what can be checked without looking at other objects.
///
/// # Errors
/// What is wrong, and what to write instead.
pub fn check(spec: &netweft_crds::Underlay) -> Result<Underlay, Verdict> {
    // Every field is named, so that a new one has to be given a meaning here.
    let netweft_crds::Underlay {
        as_number,
        as_numbers,
        listen_port,
        node_to_node_mesh,
        route_reflectors,
        hold_time,
        keepalive_time,
        connect_retry_time,
        graceful_restart,
    } = spec;
    Ok(Underlay {
        listen_port: *listen_port,
        mesh: *node_to_node_mesh,
        defaults: SessionDefaults {
            hold_time: *hold_time,
            keepalive_time: *keepalive_time,
            connect_retry_time: *connect_retry_time,
            multihop: None,
            ttl_security: None,
            bfd: None,
            graceful_restart: graceful_restart.clone().unwrap_or_default(),
            max_prefixes: MAX_PREFIXES,
            next_hop_mode: NextHopMode::default(),
            communities: Vec::new(),
            filters: Filters::default(),
            password_key: None,
        },
        as_number: *as_number,
        as_numbers: as_numbers.iter().map(numbered).collect::<Result<_, _>>()?,
        reflectors: route_reflectors
            .iter()
            .map(reflecting)
            .collect::<Result<_, _>>()?,
    })
}

fn numbered(rule: &AsNumberRule) -> Result<(Selector, u32), Verdict> {
    let nodes = rule.node_selector.clone();
    let nodes = selector("spec.underlay.asNumbers[].nodeSelector", nodes)?;
    Ok((nodes, rule.as_number))
}

fn reflecting(rule: &RouteReflectorRule) -> Result<(Selector, Ipv4Addr), Verdict> {
    let nodes = rule.node_selector.clone();
    let nodes = selector("spec.underlay.routeReflectors[].nodeSelector", nodes)?;
    let cluster = rule.cluster_id.parse().map_err(|_| {
        Verdict::stalled(
            Reason::Invalid,
            format!(
                "spec.underlay.routeReflectors[].clusterID {:?} does not have the form of an IPv4 address; write for example 10.0.0.250",
                rule.cluster_id
            ),
        )
    })?;
    Ok((nodes, cluster))
}
