//! The configuration of BIRD (`bird.conf`). Passwords are added when it is written, so that they are in nothing that is compared,
//! printed or logged.
//!
//! ```text
//!   kernel ──learn──▶ master4, master6 ──▶ kernel (routes learned by BGP, metric 78)
//!   own blocks ──static──▶   │  ▲
//!                     export ▼  │ import: blocks of others, inside the underlay's pools
//!                           sessions
//! ```
//!
//! Names of common objects begin with `nw_`, names of sessions with `bgp-`, so that they differ from each other and from BIRD's
//! own names. Both families are always configured, because a protocol that is removed leaves its routes in the kernel
//! (`persist`).

pub mod password;
mod prefix_filter;
mod protocol_name;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_crds::{IpFamily, NodeBgp, Session};
use netweft_netstate::model::{NetworkState, Route, RouteKey};
use netweft_netstate::owner::{Owner, PROTOCOL_AGENT};

use crate::desired::bird::password::Password;
use crate::desired::bird::prefix_filter::{accepted_lengths, matches_any};
use crate::inputs::Inputs;
use crate::inputs::bgp_routes::{METRIC_BIRD, bgp_routes, is_in_pools};
use crate::inputs::host_facts::HostFacts;

/// Metric of backup routes: the next one after BIRD's.
pub const METRIC_BACKUP: u32 = METRIC_BIRD + 1;
/// Seconds that a starting BIRD waits for its peers at most. A peer that runs connects within a few `connect retry time`s.
const GRACEFUL_RESTART_WAIT: u8 = 20;
/// The configuration while BGP is off. BIRD requires one protocol at least.
pub const IDLE: &str = concat!(
    "# Written by netweft-agent: BGP is off on this node.\n",
    "router id 0.0.0.1;\n",
    "protocol device nw_device { }\n"
);

/// The configuration of one node's BGP speaker.
#[derive(Clone, Debug, PartialEq)]
pub struct Bird {
    /// The text without the sessions.
    common: String,
    /// The sessions in the operator's order.
    pub sessions: Vec<BirdSession>,
    /// The default import policy.
    pub import_policy: ImportPolicy,
}

/// One session.
#[derive(Clone, Debug, PartialEq)]
pub struct BirdSession {
    /// The desired session.
    pub session: Session,
    /// Name of its protocol in BIRD.
    pub protocol: String,
    /// The text between the braces, without the password.
    body: String,
}

/// The prefixes that are accepted from peers by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportPolicy {
    /// The pools of the underlay, each with the shortest and the longest prefix length that is accepted.
    pub pools: Vec<(IpNet, u8, u8)>,
    /// The blocks of the node. Prefixes inside them are never accepted.
    pub own_blocks: Vec<IpNet>,
}

impl Bird {
    /// The text of the file, with `passwords` by key. A session whose password is missing is left out, because without the
    /// password any program could connect in place of the node.
    #[must_use]
    pub fn render(&self, passwords: &BTreeMap<String, Password>) -> String {
        let mut text = self.common.clone();
        for BirdSession {
            session,
            protocol,
            body,
        } in &self.sessions
        {
            let password = match &session.password_key {
                None => String::new(),
                Some(key) => match passwords.get(key) {
                    Some(password) => format!(
                        "\tauthentication md5;\n\tpassword \"{}\";\n",
                        password.reveal()
                    ),
                    None => continue,
                },
            };
            // Writing to a String cannot fail.
            let _ = write!(text, "\nprotocol bgp '{protocol}' {{\n{password}{body}}}\n");
        }
        text
    }
}

/// What to do with the backup routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupRoutes {
    /// Remove all.
    Remove,
    /// Keep those that exist.
    Keep,
    /// Keep those that exist, and add one for each route of BIRD.
    Create,
}

/// The backup routes. A route with more than one next hop has none.
#[must_use]
pub fn backup_routes(
    inputs: &Inputs,
    actual: &NetworkState,
    action: BackupRoutes,
) -> BTreeMap<RouteKey, Route> {
    if inputs.bgp.is_none() || action == BackupRoutes::Remove {
        return BTreeMap::new();
    }
    let existing = actual.routes.iter().filter(|(key, route)| {
        let is_backup = key.metric == METRIC_BACKUP && Owner::agent().owns_route(route);
        is_backup && is_in_pools(inputs, key)
    });
    let kept = existing.map(|(key, route)| (key.clone(), route.clone()));
    let single_hop = bgp_routes(inputs, actual).filter(|(_, route)| route.dev.is_some());
    let created = single_hop
        .filter(|_| action == BackupRoutes::Create)
        .map(|(key, route)| {
            let key = RouteKey {
                metric: METRIC_BACKUP,
                ..key.clone()
            };
            let route = Route {
                protocol: PROTOCOL_AGENT,
                ..route.clone()
            };
            (key, route)
        });
    kept.chain(created).collect()
}

/// The configuration of BIRD; `None` while BGP is off.
#[must_use]
pub fn bird(inputs: &Inputs, facts: &HostFacts) -> Option<Bird> {
    let bgp = inputs.bgp.as_ref()?;
    let sessions = bgp.sessions.iter().map(|session| BirdSession {
        protocol: protocol_name::of(&session.name),
        body: session::body(bgp, session, is_on_link(facts, session)),
        session: session.clone(),
    });
    let import_policy = import_policy(inputs);
    Some(Bird {
        common: common(inputs, bgp, &import_policy),
        sessions: sessions.collect(),
        import_policy,
    })
}

fn is_on_link(facts: &HostFacts, session: &Session) -> bool {
    let egress = facts.egress.get(&session.local);
    egress.is_some_and(|egress| egress.is_on_link(session.peer))
}

fn import_policy(inputs: &Inputs) -> ImportPolicy {
    let pools = inputs.pools.iter();
    let pools = pools.filter(|(name, _)| inputs.is_underlay(name));
    let own = inputs.blocks.iter().map(|block| block.cidr);
    ImportPolicy {
        pools: pools
            .map(|(_, pool)| {
                let (shortest, longest) = accepted_lengths(pool.cidr, pool.block_prefix);
                (pool.cidr, shortest, longest)
            })
            .collect(),
        own_blocks: own.chain(inputs.withdrawn.iter().copied()).collect(),
    }
}

/// The blocks that are advertised. A withdrawn block is included, because pods use it until it is released.
fn advertised(inputs: &Inputs) -> Vec<IpNet> {
    let own = inputs.blocks.iter().map(|block| block.cidr);
    let is_advertised = |block: &IpNet| {
        let mut around = inputs.pools.iter();
        let pool = around.find(|(_, pool)| pool.cidr.contains(block));
        pool.is_some_and(|(name, pool)| !pool.bgp_export_disabled && inputs.is_underlay(name))
    };
    own.chain(inputs.withdrawn.iter().copied())
        .filter(is_advertised)
        .collect()
}

fn common(inputs: &Inputs, bgp: &NodeBgp, policy: &ImportPolicy) -> String {
    let mut text = format!(
        "# Written by netweft-agent. Manual changes are overwritten.\n\
         router id {};\n\
         log stderr {{ info, remote, warning, error, auth, fatal, bug }};\n\
         timeformat protocol iso long;\n\
         # A starting BIRD exports no routes to the kernel before all sessions are up. The default, 240 s, is too long for peers \
         that are down.\n\
         graceful restart wait {GRACEFUL_RESTART_WAIT};\n\
         \n\
         protocol device nw_device {{\n\tscan time 10;\n}}\n\
         \n\
         # Next hops are resolved by the other routes of the node, never by routes to pods.\n\
         protocol direct nw_direct {{\n\tipv4;\n\tipv6;\n\tinterface -\"nw*\", \"*\";\n}}\n",
        bgp.router_id
    );
    if bgp.sessions.iter().any(|session| session.bfd.is_some()) {
        text += "\nprotocol bfd nw_bfd {\n}\n";
    }
    let advertised = advertised(inputs);
    for family in IpFamily::ALL {
        text += &family_text(inputs, policy, &advertised, family);
    }
    text
}

/// The text of one address family.
fn family_text(
    inputs: &Inputs,
    policy: &ImportPolicy,
    advertised: &[IpNet],
    family: IpFamily,
) -> String {
    let (tag, channel) = (tag(family), channel(family));
    let of_family = |net: &IpNet| IpFamily::of(net.addr()) == family;
    let all = inputs.pools.values().map(|pool| pool.cidr);
    let all: Vec<String> = all.filter(of_family).map(|net| format!("{net}+")).collect();
    let pools = policy.pools.iter().filter(|(net, _, _)| of_family(net));
    let pools: Vec<String> = pools
        .map(|(net, shortest, longest)| format!("{net}{{{shortest},{longest}}}"))
        .collect();
    let own = policy.own_blocks.iter().copied().filter(of_family);
    let own: Vec<String> = own.map(|net| format!("{net}+")).collect();
    let mut routes = String::new();
    for block in advertised.iter().filter(|net| of_family(net)) {
        let _ = writeln!(routes, "\troute {block} unreachable;");
    }
    format!(
        "\nfunction nw_pool_{tag}() -> bool {{\n\treturn {};\n}}\n\
         function nw_block_{tag}() -> bool {{\n\treturn {};\n}}\n\
         function nw_inside_own_{tag}() -> bool {{\n\treturn {};\n}}\n\
         {}\
         \n\
         protocol kernel nw_kernel_{tag} {{\n\
         \tscan time 10;\n\
         \tmetric {METRIC_BIRD};\n\
         \tpersist;\n\
         \tgraceful restart on;\n\
         \tlearn;\n\
         \tmerge paths on;\n\
         \t{channel} {{\n\
         \t\timport where krt_source != 78 && krt_source != 79 && !nw_pool_{tag}();\n\
         \t\texport where source = RTS_BGP;\n\
         \t}};\n\
         }}\n\
         \n\
         protocol static nw_own_{tag} {{\n\t{channel};\n{routes}}}\n",
        matches_any(&all),
        matches_any(&pools),
        matches_any(&own),
        owned(inputs, family),
    )
}

/// The function that returns whether the next hop of a route is the node that owns the block. A node that has been taken over, or a
/// reflector, cannot attract packets for the pods of another node by it.
fn owned(inputs: &Inputs, family: IpFamily) -> String {
    let mut blocks: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    let of_family = |cidr: &IpNet| IpFamily::of(cidr.addr()) == family;
    for block in inputs.remote.iter().filter(|it| of_family(&it.cidr)) {
        let address = block.addresses.of(family);
        let underlay = address.filter(|_| inputs.is_underlay(&block.pool));
        if let Some(address) = underlay {
            blocks
                .entry(address)
                .or_default()
                .push(block.cidr.to_string());
        }
    }
    let mut text = format!("function nw_owned_{}() -> bool {{\n", tag(family));
    if blocks.is_empty() {
        return text + "\treturn false;\n}\n";
    }
    text += "\tcase bgp_next_hop {\n";
    for (node, blocks) in &blocks {
        // The space ends the address: a colon could continue it.
        let _ = writeln!(text, "\t\t{node} : return {};", matches_any(blocks));
    }
    text + "\t\telse: return false;\n\t}\n}\n"
}

/// The suffix of the names of an address family in BIRD's configuration.
const fn tag(family: IpFamily) -> &'static str {
    match family {
        IpFamily::Ipv4 => "v4",
        IpFamily::Ipv6 => "v6",
    }
}

/// The channel of an address family.
const fn channel(family: IpFamily) -> &'static str {
    match family {
        IpFamily::Ipv4 => "ipv4",
        IpFamily::Ipv6 => "ipv6",
    }
}
