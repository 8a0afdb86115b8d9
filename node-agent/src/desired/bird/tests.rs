//! BIRD's configuration, compared with snapshots and parsed by BIRD itself.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use netweft_crds::{
    Bfd, FilterAction, FilterRule, IpFamily, NextHopMode, NodeAddresses, NodeMode, PodInterface,
    Transport,
};
use netweft_netstate::model::{RouteKind, TABLE_MAIN};
use proptest::prelude::*;

use crate::desired::bird::*;
use crate::inputs::bgp_routes::PROTOCOL_BIRD;
use crate::inputs::host_facts::Egress;
use crate::inputs::{OwnBlock, Pool};
use crate::status::problem::Problems;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn pool(cidr: &str, block_prefix: u8) -> Pool {
    Pool {
        cidr: net(cidr),
        block_prefix,
        bgp_export_disabled: false,
        nat_outgoing: false,
        nat_exclude: vec![],
        reserved: vec![],
        pod_interface: PodInterface::Routed,
        disabled: false,
        draining: false,
        has_node_selector: false,
        namespace_selector: None,
    }
}

fn block(cidr: &str, pool: &str) -> OwnBlock {
    OwnBlock {
        cidr: net(cidr),
        pool: pool.into(),
    }
}

/// A session of the node-to-node mesh over IPv4.
fn session(name: &str, peer: &str) -> Session {
    Session {
        name: name.into(),
        bgp_peer: None,
        peer: peer.parse().unwrap(),
        port: 179,
        local: "192.0.2.1".parse().unwrap(),
        local_as: 64512,
        peer_as: 64512,
        node: true,
        reflector_client: false,
        password_key: None,
        hold_time: Duration::from_secs(90).into(),
        keepalive_time: Duration::from_secs(30).into(),
        connect_retry_time: Duration::from_secs(5).into(),
        multihop: None,
        ttl_security: None,
        bfd: None,
        graceful_restart: Default::default(),
        max_prefixes: 20_000,
        next_hop_mode: NextHopMode::Auto,
        communities: vec![],
        filters: Default::default(),
    }
}

fn router(name: &str, peer: &str) -> Session {
    Session {
        node: false,
        bgp_peer: Some(name.into()),
        peer_as: 65001,
        ..session(name, peer)
    }
}

fn speaker(sessions: Vec<Session>) -> NodeBgp {
    NodeBgp {
        as_number: 64512,
        router_id: "192.0.2.1".parse().unwrap(),
        listen_port: 179,
        cluster_id: None,
        sessions,
    }
}

/// A node with a block of each family in underlay pools, and a block of a tunnelled pool.
fn inputs(bgp: NodeBgp) -> Inputs {
    let mode = |name: &str, transport: Transport, pools: &[&str]| NodeMode {
        name: name.into(),
        pools: pools.iter().map(ToString::to_string).collect(),
        standby_pools: vec![],
        transport: transport.into(),
        outer_family: IpFamily::Ipv4,
        encapsulate_when: Default::default(),
        mtu: 0,
        probe: Default::default(),
    };
    let pools = [
        ("four", pool("10.244.0.0/16", 26)),
        ("six", pool("fd00:10::/64", 122)),
        ("tunnelled", pool("10.99.0.0/16", 26)),
    ];
    Inputs {
        node: "worker-1".into(),
        addresses: NodeAddresses {
            ipv4: "192.0.2.1".parse().ok(),
            ipv6: "2001:db8::1".parse().ok(),
        },
        modes: vec![
            mode("default", Transport::Bgp, &["four", "six"]),
            mode("other", Transport::Ipip, &["tunnelled"]),
        ],
        serving_pools: vec![],
        nodes: [].into(),
        namespaces: BTreeMap::new(),
        blocks: vec![
            block("10.244.0.0/26", "four"),
            block("fd00:10::/122", "six"),
            block("10.99.0.0/26", "tunnelled"),
        ],
        withdrawn: vec![],
        remote: vec![],
        pools: pools.map(|(name, pool)| (name.to_owned(), pool)).into(),
        bgp: Some(bgp),
        pods: Default::default(),
        problems: Problems::default(),
    }
}

fn facts() -> HostFacts {
    let egress = |on_link: &str| Egress {
        link: "uplink1".parse().unwrap(),
        mtu: 1400,
        on_link: [net(on_link)].into(),
        off_link: Default::default(),
    };
    let links = [
        ("192.0.2.1", egress("192.0.2.0/24")),
        ("2001:db8::1", egress("2001:db8::/64")),
    ];
    HostFacts {
        default_gateways: Default::default(),
        egress: links
            .map(|(ip, egress)| (ip.parse().unwrap(), egress))
            .into(),
        ..HostFacts::default()
    }
}

fn text_of(inputs: &Inputs) -> String {
    let password = Password::parse(b"s3cret # { } ; '").unwrap();
    let passwords = [("tor-password".to_owned(), password)].into();
    bird(inputs, &facts()).unwrap().render(&passwords)
}

/// The lines of one session.
fn session_text(session: Session) -> String {
    let text = text_of(&inputs(speaker(vec![session])));
    text.split("protocol bgp").nth(1).unwrap().to_owned()
}

/// Whether BIRD accepts a configuration, and its error.
fn bird_check(text: &str) -> Result<(), String> {
    let folder = std::env::var_os("NETWEFT_BIRD_BIN")
        .expect("NETWEFT_BIRD_BIN is the folder with bird: run the tests by `make test`, or see e2e/cluster/bird.sh");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bird.conf");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(PathBuf::from(folder).join("bird"));
    let output = command.arg("-p").arg("-c").arg(file).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(())
    } else {
        Err(error)
    }
}

#[test]
fn bird_accepts_config_of_mesh_node() {
    let six = Session {
        local: "2001:db8::1".parse().unwrap(),
        ..session("mesh-worker-2-ipv6", "2001:db8::2")
    };
    let sessions = vec![
        session("mesh-worker-2", "192.0.2.2"),
        six,
        session("mesh-worker-3", "198.51.100.3"),
    ];
    let text = text_of(&inputs(speaker(sessions)));
    insta::assert_snapshot!(text);
    bird_check(&text).unwrap();
}

fn rule(action: FilterAction, cidr: &str, lengths: (Option<u8>, Option<u8>)) -> FilterRule {
    FilterRule {
        action,
        cidr: net(cidr),
        min_length: lengths.0,
        max_length: lengths.1,
    }
}

#[test]
fn bird_accepts_config_of_node_behind_routers() {
    let mut tor = router("tor-1", "192.0.2.254");
    tor.password_key = Some("tor-password".into());
    tor.bfd = Some(Bfd {
        min_receive: Duration::from_millis(50).into(),
        min_transmit: Duration::from_millis(100).into(),
        multiplier: 3,
    });
    tor.graceful_restart.enabled = false;
    tor.communities = vec!["64512:100".into(), "64512:1:2".into()];
    tor.filters.import = vec![
        rule(FilterAction::Reject, "10.244.128.0/17", (None, None)),
        rule(FilterAction::Accept, "0.0.0.0/0", (None, Some(0))),
        rule(FilterAction::Accept, "::/0", (None, Some(0))),
    ];
    tor.filters.export = vec![rule(
        FilterAction::Reject,
        "10.244.0.0/16",
        (Some(20), Some(26)),
    )];
    let mut far = router("far", "203.0.113.1");
    far.multihop = Some(3);
    far.port = 1790;
    far.next_hop_mode = NextHopMode::NextHopSelf;
    let mut six = router("tor-6", "2001:db8::fe");
    six.local = "2001:db8::1".parse().unwrap();
    six.ttl_security = Some(1);
    six.next_hop_mode = NextHopMode::Keep;
    let mut bgp = speaker(vec![tor, far, six]);
    bgp.listen_port = 1179;
    let text = text_of(&inputs(bgp));
    insta::assert_snapshot!(text);
    bird_check(&text).unwrap();
}

#[test]
fn bird_accepts_config_of_route_reflector() {
    let mut client = session("mesh-worker-2", "192.0.2.2");
    client.reflector_client = true;
    let mut bgp = speaker(vec![
        client,
        session("mesh-other-reflector", "192.0.2.3"),
        router("tor", "192.0.2.254"),
    ]);
    bgp.cluster_id = "10.0.0.250".parse().ok();
    let text = text_of(&inputs(bgp));
    insta::assert_snapshot!(text);
    bird_check(&text).unwrap();
}

#[test]
fn bird_accepts_config_of_empty_and_idle_node() {
    let mut inputs = inputs(speaker(vec![]));
    inputs.pools.clear();
    inputs.blocks.clear();
    let text = text_of(&inputs);
    bird_check(&text).unwrap();
    assert!(text.contains("return false;") && !text.contains("protocol bgp"));
    bird_check(IDLE).unwrap();
    inputs.bgp = None;
    assert_eq!(bird(&inputs, &facts()), None);
}

fn route(dst: &str, (protocol, metric): (u8, u32), dev: Option<&str>) -> (RouteKey, Route) {
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: net(dst),
        metric,
    };
    let route = Route {
        kind: RouteKind::Unicast,
        protocol,
        via: "192.0.2.3".parse().ok(),
        dev: dev.map(|dev| dev.parse().unwrap()),
        onlink: false,
        source: None,
        mtu: None,
    };
    (key, route)
}

#[test]
fn backup_routes_copy_single_next_hop_pool_routes() {
    let bird = (PROTOCOL_BIRD, METRIC_BIRD);
    let backup = |dst| route(dst, (PROTOCOL_AGENT, METRIC_BACKUP), Some("uplink1"));
    let earlier = backup("10.244.1.0/26");
    let actual = NetworkState {
        routes: BTreeMap::from([
            earlier.clone(),
            backup("198.51.100.0/26"),
            route("10.244.2.0/26", bird, Some("uplink1")),
            route("10.244.3.0/26", bird, None),
            route("198.51.100.0/24", bird, Some("uplink1")),
        ]),
        ..NetworkState::default()
    };
    let inputs = inputs(speaker(vec![]));
    let with = |action| backup_routes(&inputs, &actual, action);
    let created = [earlier.clone(), backup("10.244.2.0/26")];
    assert_eq!(with(BackupRoutes::Create), created.into());
    assert_eq!(with(BackupRoutes::Keep), [earlier].into());
    assert_eq!(with(BackupRoutes::Remove), [].into());
}

#[test]
fn bgp_session_without_password_is_omitted() {
    let mut tor = router("tor-1", "192.0.2.254");
    tor.password_key = Some("another".into());
    let text = text_of(&inputs(speaker(vec![tor, router("tor-2", "192.0.2.253")])));
    assert!(!text.contains("'bgp-tor-1'") && text.contains("'bgp-tor-2'"));
}

fn advertised_by(inputs: &Inputs) -> Vec<String> {
    let text = text_of(inputs);
    let lines = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("route "));
    lines.map(str::to_owned).collect()
}

#[test]
fn own_underlay_blocks_are_advertised_unless_disabled() {
    let mut inputs = inputs(speaker(vec![]));
    let own = ["10.244.0.0/26 unreachable;", "fd00:10::/122 unreachable;"];
    assert_eq!(advertised_by(&inputs), own, "without the tunnelled block");
    inputs.pools.get_mut("six").unwrap().bgp_export_disabled = true;
    assert_eq!(advertised_by(&inputs), own[..1]);
    // Pods use a withdrawn block until it is released.
    inputs.withdrawn = vec![net("10.244.9.0/26"), net("10.99.9.0/26")];
    assert_eq!(advertised_by(&inputs)[1..], ["10.244.9.0/26 unreachable;"]);
}

#[test]
fn import_filters_never_accept_routes_in_own_blocks() {
    let mut tor = router("tor", "192.0.2.254");
    tor.filters.import = vec![rule(FilterAction::Accept, "0.0.0.0/0", (None, None))];
    let text = session_text(tor);
    let own = text.find("nw_inside_own_v4() then reject").unwrap();
    assert!(own < text.find("0.0.0.0/0{0,32}").unwrap());
    let mut inputs = inputs(speaker(vec![]));
    inputs.withdrawn = vec![net("10.244.9.0/26")];
    assert!(text_of(&inputs).contains("[ 10.244.0.0/26+, 10.99.0.0/26+, 10.244.9.0/26+ ]"));
}

#[test]
fn import_accepts_whole_pool_only_if_pool_is_one_block() {
    let text_with = |cidr: &str| {
        let mut inputs = inputs(speaker(vec![]));
        inputs.pools.insert("four".into(), pool(cidr, 26));
        text_of(&inputs)
    };
    assert!(text_with("10.244.0.0/16").contains("net ~ [ 10.244.0.0/16{17,26} ]"));
    assert!(text_with("10.244.0.0/26").contains("net ~ [ 10.244.0.0/26{26,26} ]"));
}

#[test]
fn bgp_multihop_and_ttl_follow_from_peer_type() {
    let distance = |session: Session| -> Vec<String> {
        let text = session_text(session);
        let lines = text.lines().map(|line| line.trim().trim_end_matches(';'));
        let statements = ["direct", "multihop", "ttl security"];
        lines
            .filter(|line| statements.iter().any(|it| line.starts_with(it)))
            .map(str::to_owned)
            .collect()
    };
    let near = || session("mesh-a", "192.0.2.2");
    let far = || session("mesh-a", "198.51.100.2");
    assert_eq!(distance(near()), ["multihop 1", "ttl security on"]);
    assert_eq!(distance(far()), ["multihop 255"]);
    let other_as = Session {
        peer_as: 64513,
        ..near()
    };
    assert_eq!(distance(other_as), ["multihop 1", "ttl security on"]);
    let tor = || router("tor", "192.0.2.254");
    assert_eq!(distance(tor()), ["direct"]);
    assert_eq!(
        distance(Session {
            multihop: Some(2),
            ..tor()
        }),
        ["multihop 2"]
    );
    let secure = |hops| Session {
        ttl_security: Some(hops),
        ..tor()
    };
    assert_eq!(distance(secure(1)), ["direct", "ttl security on"]);
    assert_eq!(distance(secure(3)), ["multihop 3", "ttl security on"]);
    let internal = Session {
        peer_as: 64512,
        ..tor()
    };
    assert_eq!(distance(internal), ["multihop 255"]);
}

#[test]
fn filter_rule_lengths_are_clamped_and_empty_ones_omitted() {
    let mut tor = router("tor", "192.0.2.254");
    tor.filters.export = vec![
        rule(FilterAction::Accept, "10.0.0.0/8", (Some(4), Some(64))),
        rule(FilterAction::Accept, "10.1.0.0/16", (None, Some(8))),
        rule(FilterAction::Accept, "fd00::/8", (None, None)),
    ];
    let text = session_text(tor);
    let rules: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("if net"))
        .collect();
    assert_eq!(rules, ["\t\t\tif net ~ [ 10.0.0.0/8{8,32} ] then accept;"]);
}

#[test]
fn bgp_timers_are_adjusted_to_bird_limits() {
    let mut tor = router("tor", "192.0.2.254");
    tor.hold_time = Duration::from_millis(3500).into();
    tor.keepalive_time = Duration::from_secs(100).into();
    tor.connect_retry_time = Duration::from_millis(1).into();
    let text = session_text(tor);
    for line in ["hold time 4;", "keepalive time 4;", "connect retry time 1;"] {
        assert!(text.contains(line), "{text}");
    }
}

/// The text without quoted strings.
fn without_strings(text: &str) -> String {
    let mut bare = String::new();
    let mut quote = None;
    for c in text.chars() {
        match quote {
            None if c == '"' || c == '\'' => quote = Some(c),
            None => bare.push(c),
            Some(end) if c == end => quote = None,
            Some(_) => {}
        }
    }
    bare
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bird_config_escapes_arbitrary_strings(
        name in "\\PC{1,80}|[a-z'\";{}\n\\\\]{1,90}",
        community in "\\PC{1,20}|[0-9:;)]{1,12}",
        password in "[ -~]{1,60}|\\PC{1,20}",
    ) {
        let render = |name: &str, password: Option<Password>, community: &str| {
            let mut tor = router(name, "192.0.2.254");
            tor.password_key = Some("k".into());
            tor.communities = vec![community.to_owned()];
            let bird = bird(&inputs(speaker(vec![tor])), &facts()).unwrap();
            bird.render(&password.into_iter().map(|password| ("k".to_owned(), password)).collect())
        };
        // Another test covers invalid passwords: the session is left out.
        let password = Password::parse(password.as_bytes());
        prop_assume!(password.is_ok());
        let text = render(&name, password.ok(), &community);
        let plain = render("plain", Password::parse(b"plain").ok(), "1:1");
        let without_values = |text: &str| -> String {
            let lines = without_strings(text).lines().map(str::to_owned).collect::<Vec<_>>();
            lines.into_iter().filter(|line| !line.contains("community.add((")).collect::<Vec<_>>().join("\n")
        };
        prop_assert_eq!(without_values(&text), without_values(&plain));
        prop_assert_eq!(bird_check(&text), Ok(()));
    }
}
