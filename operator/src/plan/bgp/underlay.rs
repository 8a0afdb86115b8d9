//! [`Underlay`]: the validated BGP parameters of a NetworkMode.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use kube::core::{Selector, SelectorExt};
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{AsNumberRule, Bfd, Filters, GracefulRestart, NextHopMode, RouteReflectorRule};

use crate::plan::validate::ip_pool::selector;

/// Default maximum number of prefixes of a session.
const MAX_PREFIXES: u32 = 20_000;

/// BGP parameters of the nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Underlay {
    /// TCP port on which nodes listen.
    pub listen_port: u16,
    /// Whether all nodes have sessions with each other.
    pub mesh: bool,
    /// Common parameters of the mode's sessions.
    pub defaults: SessionDefaults,
    as_number: u32,
    as_numbers: Vec<(Selector, u32)>,
    reflectors: Vec<(Selector, Ipv4Addr)>,
}

/// Parameters of a session, without its endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionDefaults {
    /// Hold time.
    pub hold_time: kube::core::Duration,
    /// Interval of keepalives.
    pub keepalive_time: kube::core::Duration,
    /// Interval of connection attempts.
    pub connect_retry_time: kube::core::Duration,
    /// Maximum number of hops to an eBGP peer.
    pub multihop: Option<u8>,
    /// Maximum number of hops of received packets (GTSM).
    pub ttl_security: Option<u8>,
    /// Bidirectional forwarding detection.
    pub bfd: Option<Bfd>,
    /// Graceful restart.
    pub graceful_restart: GracefulRestart,
    /// Maximum number of accepted prefixes.
    pub max_prefixes: u32,
    /// Next hop of announced prefixes.
    pub next_hop_mode: NextHopMode,
    /// Communities of announced prefixes.
    pub communities: Vec<String>,
    /// Import and export filters.
    pub filters: Filters,
    /// Key of the password in the agents' Secret.
    pub password_key: Option<String>,
}

impl SessionDefaults {
    /// The maximum number of prefixes, with its default.
    #[must_use]
    pub fn max_prefixes(limit: Option<u32>) -> u32 {
        limit.unwrap_or(MAX_PREFIXES)
    }
}

impl Underlay {
    /// AS number of a node with these labels. The first matching rule counts.
    #[must_use]
    pub fn as_number(&self, labels: &BTreeMap<String, String>) -> u32 {
        first_match(&self.as_numbers, labels).unwrap_or(self.as_number)
    }

    /// Cluster ID of a node with these labels, if it is a route reflector (RFC 4456).
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

/// Validates the BGP parameters without looking at other objects.
///
/// # Errors
/// The error and the remedy.
pub fn check(spec: &netweft_crds::Underlay) -> Result<Underlay, Verdict> {
    // The pattern has all fields, so that a new field needs a decision here.
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
        as_numbers: as_numbers
            .iter()
            .map(as_number_rule)
            .collect::<Result<_, _>>()?,
        reflectors: route_reflectors
            .iter()
            .map(reflector_rule)
            .collect::<Result<_, _>>()?,
    })
}

fn as_number_rule(rule: &AsNumberRule) -> Result<(Selector, u32), Verdict> {
    let nodes = rule.node_selector.clone();
    let nodes = selector("spec.underlay.asNumbers[].nodeSelector", nodes)?;
    Ok((nodes, rule.as_number))
}

fn reflector_rule(rule: &RouteReflectorRule) -> Result<(Selector, Ipv4Addr), Verdict> {
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
