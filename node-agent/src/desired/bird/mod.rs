//! What BIRD is to do, as text: `bird.conf`, but for the passwords, which stand in nothing that is compared, printed or logged.
//!
//! ```text
//!   kernel ──learn──▶ master4, master6 ──▶ kernel (routes learned by BGP, metric 78)
//!   own blocks ──static──▶   │  ▲
//!                     export ▼  │ import: blocks of others, inside the underlay's pools
//!                           sessions
//! ```
//!
//! Names of ours begin with `nw_`, those of sessions with `bgp-`: the two cannot meet, nor meet BIRD's own.
//! Both families are always there: a protocol that is taken away leaves its routes in the kernel (`persist`).

mod filter;
mod name;
pub mod password;
mod session;
#[cfg(test)]
mod tests;

use crate::inputs::bgp_routes::{METRIC_BIRD, bgp_routes, is_in_pools};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_crds::{IpFamily, NodeBgp, Session};
use netweft_netstate::model::{NetworkState, Route, RouteKey};
use netweft_netstate::owner::{Owner, PROTOCOL_AGENT};

use crate::desired::bird::filter::{inside, lengths};
use crate::desired::bird::password::Password;
use crate::inputs::Inputs;
use crate::inputs::host_facts::Facts;

/// Metric of the routes that stand in for BIRD's, right behind them.
pub const METRIC_STAND_IN: u32 = METRIC_BIRD + 1;
/// How long a BIRD that starts waits for its peers at most, in s: one that lives is back within some `connect retry time`s.
const RECOVERY: u8 = 20;
/// The configuration while BGP is off. BIRD requires one protocol at least.
pub const IDLE: &str = concat!(
    "# Written by netweft-agent: BGP is off on this node.\n",
    "router id 0.0.0.1;\n",
    "protocol device nw_device { }\n"
);

/// One node's speaker.
#[derive(Clone, Debug, PartialEq)]
pub struct Bird {
    /// All but the sessions.
    common: String,
    /// The sessions in the operator's order.
    pub sessions: Vec<BirdSession>,
    /// The default of what is accepted from peers.
    pub taken: Taken,
}

/// One session.
#[derive(Clone, Debug, PartialEq)]
pub struct BirdSession {
    /// As the operator wants it.
    pub session: Session,
    /// Its name in BIRD.
    pub protocol: String,
    /// What stands between the braces, without the password.
    body: String,
}

/// Which prefixes are taken from peers by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The pools that travel by BGP, each with the shortest and the longest prefix length that is taken.
    pub pools: Vec<(IpNet, u8, u8)>,
    /// The node's own blocks: nothing inside them is ever taken.
    pub own: Vec<IpNet>,
}

impl Bird {
    /// The file: `passwords` by key. A session whose password is not among them is left out, for without it the peer would
    /// take anybody for us.
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

/// What is to become of the routes that stand in for BIRD's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupRoutes {
    /// There are to be none.
    Remove,
    /// Those that are there stay.
    Keep,
    /// Each of BIRD's gets one.
    Create,
}

/// The routes that stand in for BIRD's. Not for those with more than one next hop.
#[must_use]
pub fn backup_routes(
    inputs: &Inputs,
    actual: &NetworkState,
    what: BackupRoutes,
) -> BTreeMap<RouteKey, Route> {
    if inputs.bgp.is_none() || what == BackupRoutes::Remove {
        return BTreeMap::new();
    }
    let there = actual.routes.iter().filter(|(key, route)| {
        let ours = key.metric == METRIC_STAND_IN && Owner::agent().owns_route(route);
        ours && is_in_pools(inputs, key)
    });
    let kept = there.map(|(key, route)| (key.clone(), route.clone()));
    let plain = bgp_routes(inputs, actual).filter(|(_, route)| route.dev.is_some());
    let made = plain
        .filter(|_| what == BackupRoutes::Create)
        .map(|(key, route)| {
            let key = RouteKey {
                metric: METRIC_STAND_IN,
                ..key.clone()
            };
            let route = Route {
                protocol: PROTOCOL_AGENT,
                ..route.clone()
            };
            (key, route)
        });
    kept.chain(made).collect()
}

/// What BIRD is to do; `None` while BGP is off.
#[must_use]
pub fn bird(inputs: &Inputs, facts: &Facts) -> Option<Bird> {
    let bgp = inputs.bgp.as_ref()?;
    let sessions = bgp.sessions.iter().map(|session| BirdSession {
        protocol: name::of(&session.name),
        body: session::body(bgp, session, is_on_link(facts, session)),
        session: session.clone(),
    });
    let taken = taken(inputs);
    Some(Bird {
        common: common(inputs, bgp, &taken),
        sessions: sessions.collect(),
        taken,
    })
}

fn is_on_link(facts: &Facts, session: &Session) -> bool {
    let egress = facts.egress.get(&session.local);
    egress.is_some_and(|egress| egress.is_on_link(session.peer))
}

fn taken(inputs: &Inputs) -> Taken {
    let pools = inputs.pools.iter();
    let pools = pools.filter(|(name, _)| inputs.is_underlay(name));
    let own = inputs.blocks.iter().map(|block| block.cidr);
    Taken {
        pools: pools
            .map(|(_, pool)| {
                let (shortest, longest) = lengths(pool.cidr, pool.block_prefix);
                (pool.cidr, shortest, longest)
            })
            .collect(),
        own: own.chain(inputs.withdrawn.iter().copied()).collect(),
    }
}

/// Own blocks that others are to hear of. Of one that the operator has withdrawn too: pods live in it until it is gone.
fn announced(inputs: &Inputs) -> Vec<IpNet> {
    let own = inputs.blocks.iter().map(|block| block.cidr);
    let open = |block: &IpNet| {
        let mut around = inputs.pools.iter();
        let pool = around.find(|(_, pool)| pool.cidr.contains(block));
        pool.is_some_and(|(name, pool)| !pool.unannounced && inputs.is_underlay(name))
    };
    own.chain(inputs.withdrawn.iter().copied())
        .filter(open)
        .collect()
}

fn common(inputs: &Inputs, bgp: &NodeBgp, taken: &Taken) -> String {
    let mut text = format!(
        "# Written by netweft-agent. What you change here is lost.\n\
         router id {};\n\
         log stderr {{ info, remote, warning, error, auth, fatal, bug }};\n\
         timeformat protocol iso long;\n\
         # A BIRD that starts gives the kernel nothing before all sessions are up; 240 s, the default, are too long for peers that are not \
         there.\n\
         graceful restart wait {RECOVERY};\n\
         \n\
         protocol device nw_device {{\n\tscan time 10;\n}}\n\
         \n\
         # Next hops are looked up in what the node knows without us; what leads to pods has nothing to say about that.\n\
         protocol direct nw_direct {{\n\tipv4;\n\tipv6;\n\tinterface -\"nw*\", \"*\";\n}}\n",
        bgp.router_id
    );
    if bgp.sessions.iter().any(|session| session.bfd.is_some()) {
        text += "\nprotocol bfd nw_bfd {\n}\n";
    }
    let announced = announced(inputs);
    for family in [Family::V4, Family::V6] {
        text += &family_text(inputs, taken, &announced, family);
    }
    text
}

/// What there is once for each family.
fn family_text(inputs: &Inputs, taken: &Taken, announced: &[IpNet], family: Family) -> String {
    let (tag, channel) = (family.tag(), family.channel());
    let of_family = |net: &IpNet| family.holds(net);
    let all = inputs.pools.values().map(|pool| pool.cidr);
    let all: Vec<String> = all.filter(of_family).map(|net| format!("{net}+")).collect();
    let pools = taken.pools.iter().filter(|(net, _, _)| of_family(net));
    let pools: Vec<String> = pools
        .map(|(net, shortest, longest)| format!("{net}{{{shortest},{longest}}}"))
        .collect();
    let own = taken.own.iter().copied().filter(of_family);
    let own: Vec<String> = own.map(|net| format!("{net}+")).collect();
    let mut routes = String::new();
    for block in announced.iter().filter(|net| of_family(net)) {
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
        inside(&all),
        inside(&pools),
        inside(&own),
        owned(inputs, family),
    )
}

/// A function that tells whether the next hop of a route is the node that owns the block. A node that has been taken over, or a
/// reflector, cannot attract packets for the pods of another node by it.
fn owned(inputs: &Inputs, family: Family) -> String {
    let mut blocks: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for block in inputs.remote.iter().filter(|it| family.holds(&it.cidr)) {
        let address = block.addresses.of(IpFamily::of(block.cidr.addr()));
        let underlay = address.filter(|_| inputs.is_underlay(&block.pool));
        if let Some(address) = underlay {
            blocks
                .entry(address)
                .or_default()
                .push(block.cidr.to_string());
        }
    }
    let mut text = format!("function nw_owned_{}() -> bool {{\n", family.tag());
    if blocks.is_empty() {
        return text + "\treturn false;\n}\n";
    }
    text += "\tcase bgp_next_hop {\n";
    for (node, blocks) in &blocks {
        // The space ends the address: a colon could continue it.
        let _ = writeln!(text, "\t\t{node} : return {};", inside(blocks));
    }
    text + "\t\telse: return false;\n\t}\n}\n"
}

/// A family of addresses, as BIRD's text wants it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn of(ipv4: bool) -> Self {
        if ipv4 { Self::V4 } else { Self::V6 }
    }

    fn holds(self, net: &IpNet) -> bool {
        Self::of(net.addr().is_ipv4()) == self
    }

    const fn tag(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    const fn channel(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}
