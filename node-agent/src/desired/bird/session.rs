//! The configuration of one session.

use std::fmt::Write;
use std::time::Duration;

use netweft_crds::{Bfd, IpFamily, NextHopMode, NodeBgp, Session};

use crate::desired::bird::{self, prefix_filter};

/// The largest TTL. A peer with TTL security (RFC 5082) accepts it from neighbours.
const ALL_HOPS: u8 = 255;
/// Limit of received prefixes per accepted prefix. BIRD keeps rejected prefixes in memory to count them.
const RECEIVED_PER_ACCEPTED: u32 = 10;
/// Minimum of the limit of received prefixes.
const MIN_RECEIVE_LIMIT: u32 = 200_000;
/// The preference of all routes from nodes: the default of BIRD.
const LOCAL_PREF: u32 = 100;

/// The text between the braces of a session, one line per statement. `on_link`: the peer is on a link of this node.
pub fn body(bgp: &NodeBgp, session: &Session, on_link: bool) -> String {
    let Session {
        peer,
        port,
        local,
        local_as,
        peer_as,
        reflector_client,
        ..
    } = session;
    let mut lines = vec![
        format!("local {local} port {} as {local_as}", bgp.listen_port),
        format!("neighbor {peer} port {port} as {peer_as}"),
    ];
    lines.extend(distance(session, on_link));
    lines.extend(timers(session));
    let restart = &session.graceful_restart;
    if restart.enabled {
        lines.push("graceful restart on".to_owned());
        let time = seconds(restart.restart_time).min(4095);
        lines.push(format!("graceful restart time {time}"));
    } else {
        lines.push("graceful restart off".to_owned());
    }
    lines.extend(session.bfd.as_ref().map(bfd));
    // Cluster ID and clients apply to peers of the same AS (RFC 4456). Routers get none: their routes then carry the router ID of
    // this node, and their sessions persist when the node stops being a route reflector.
    let cluster = bgp.cluster_id.filter(|_| session.node);
    if let Some(id) = cluster.filter(|_| local_as == peer_as) {
        lines.push(format!("rr cluster id {id}"));
        if *reflector_client {
            lines.push("rr client".to_owned());
        }
    }
    let mut text = String::new();
    for line in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\t{line};");
    }
    text + &channel(bgp, session)
}

/// The distance of the peer. Sessions between nodes are multihop even on one link, so that the two ends need not agree on whether
/// they share a link. An end that shares one accepts packets of a neighbour only.
fn distance(session: &Session, on_link: bool) -> Vec<String> {
    let internal = session.local_as == session.peer_as;
    let secure = |hops: String| vec![hops, "ttl security on".to_owned()];
    let multihop = |hops: u8| format!("multihop {hops}");
    match (session.ttl_security, session.multihop) {
        (Some(1), _) if !session.node && !internal => secure("direct".to_owned()),
        (Some(hops), _) => secure(multihop(hops)),
        (None, None) if session.node && on_link => secure(multihop(1)),
        (None, Some(hops)) if !session.node => vec![multihop(hops)],
        (None, _) if session.node || internal => vec![multihop(ALL_HOPS)],
        (None, _) => vec!["direct".to_owned()],
    }
}

fn timers(session: &Session) -> Vec<String> {
    let hold = seconds(session.hold_time).clamp(3, 65535);
    let keepalive = seconds(session.keepalive_time).clamp(1, hold);
    vec![
        format!("hold time {hold}"),
        format!("keepalive time {keepalive}"),
        // BIRD's default of 5 s would delay a node that joins.
        "connect delay time 1".to_owned(),
        format!(
            "connect retry time {}",
            seconds(session.connect_retry_time).max(1)
        ),
        // BIRD's default of one to five minutes would delay the session after a peer has been corrected.
        "error wait time 2, 10".to_owned(),
    ]
}

fn bfd(bfd: &Bfd) -> String {
    format!(
        "bfd {{ min rx interval {} ms; min tx interval {} ms; multiplier {}; }}",
        milliseconds(bfd.min_receive),
        milliseconds(bfd.min_transmit),
        bfd.multiplier.max(1)
    )
}

/// The exchanged routes. When a limit is reached, further prefixes are dropped and the session persists.
fn channel(bgp: &NodeBgp, session: &Session) -> String {
    let family = IpFamily::of(session.peer);
    let (tag, channel) = (bird::tag(family), bird::channel(family));
    let import_limit = session.max_prefixes.max(1);
    let receive_limit = import_limit
        .saturating_mul(RECEIVED_PER_ACCEPTED)
        .max(MIN_RECEIVE_LIMIT);
    let next_hop = match session.next_hop_mode {
        NextHopMode::Auto => "",
        NextHopMode::NextHopSelf => "\t\tnext hop self;\n",
        NextHopMode::Keep => "\t\tnext hop keep;\n",
    };
    let communities = session
        .communities
        .iter()
        .filter_map(|text| community(text));
    let communities: String = communities.collect();
    // An update has a global next hop and a link-local one (RFC 2545, section 3). BIRD prefers the link-local one, and only the global one
    // shows the owner of a block.
    let global = if session.node && family == IpFamily::Ipv6 {
        "\t\tnext hop prefer global;\n"
    } else {
        ""
    };
    // A node must not attract packets by preferences, or by blocks of other nodes.
    let of_node = if session.node {
        format!(
            "\t\t\tbgp_local_pref = {LOCAL_PREF};\n\
             \t\t\tunset(bgp_med);\n\
             \t\t\tif nw_pool_{tag}() && !nw_owned_{tag}() then reject;\n"
        )
    } else {
        String::new()
    };
    // A route reflector advertises learned routes; BIRD selects the peers (RFC 4456, section 6).
    let default_action = if bgp.cluster_id.is_some() {
        "accept"
    } else {
        "reject"
    };
    format!(
        "\t{channel} {{\n{next_hop}{global}\
         \t\timport keep filtered on;\n\
         \t\treceive limit {receive_limit} action block;\n\
         \t\timport limit {import_limit} action block;\n\
         \t\timport filter {{\n\
         \t\t\tif nw_inside_own_{tag}() then reject;\n{of_node}{import}\
         \t\t\tif nw_block_{tag}() then accept;\n\
         \t\t\treject;\n\
         \t\t}};\n\
         \t\texport filter {{\n\
         \t\t\tif proto != \"nw_own_{tag}\" && source != RTS_BGP then reject;\n{communities}{export}\
         \t\t\tif proto = \"nw_own_{tag}\" then accept;\n\
         \t\t\t{default_action};\n\
         \t\t}};\n\
         \t}};\n",
        import = prefix_filter::rules(&session.filters.import, family),
        export = prefix_filter::rules(&session.filters.export, family),
    )
}

/// The statement that adds a standard community (RFC 1997) or a large one (RFC 8092); `None` for any other text.
fn community(text: &str) -> Option<String> {
    let numbers: Option<Vec<u32>> = text.split(':').map(|part| part.parse().ok()).collect();
    match *numbers? {
        [a, b] if a.max(b) <= u32::from(u16::MAX) => {
            Some(format!("\t\t\tbgp_community.add(({a}, {b}));\n"))
        }
        [a, b, c] => Some(format!("\t\t\tbgp_large_community.add(({a}, {b}, {c}));\n")),
        _ => None,
    }
}

fn seconds(duration: kube::core::Duration) -> u64 {
    let duration = Duration::from(duration);
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn milliseconds(duration: kube::core::Duration) -> u64 {
    let least = Duration::from(duration).as_millis().max(1);
    u64::try_from(least).unwrap_or(u64::MAX)
}
