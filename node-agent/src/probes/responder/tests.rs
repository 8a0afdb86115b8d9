use crate::probes::responder::*;

fn request(source: &str) -> Received {
    Received {
        data: packet::udp_request(7),
        source: SocketAddr::new(source.parse().unwrap(), 40000),
        destination: "10.244.0.1".parse().unwrap(),
    }
}

#[test]
fn responder_answers_only_exact_requests_of_known_nodes() {
    let peers = ["192.0.2.2", "fd00::2"].map(|ip| ip.parse().unwrap());
    let peers = BTreeSet::from(peers);
    for (source, answered) in [
        ("192.0.2.2", true),
        ("fd00::2", true),
        ("192.0.2.3", false),
        ("fd00::3", false),
    ] {
        let reply = reply(&request(source), &peers);
        let nonce = reply.and_then(|packet| packet::udp_nonce(&packet));
        assert_eq!(nonce, answered.then_some(7), "{source}");
    }
    assert_eq!(reply(&request("192.0.2.2"), &BTreeSet::new()), None);
    let mut longer = request("192.0.2.2");
    longer.data.push(0);
    assert_eq!(reply(&longer, &peers), None);
}

#[test]
fn responder_rate_limit_is_per_second() {
    let mut limit = RateLimit::default();
    let start = Instant::now();
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    for _ in 1..MAX_PACKETS_PER_SECOND {
        assert_eq!(limit.count(at(300)), Duration::ZERO);
    }
    assert_eq!(limit.count(at(500)), Duration::from_millis(800));
    assert_eq!(limit.count(at(1300)), Duration::ZERO);
    assert_eq!(limit.packets, 1);
    assert_eq!(limit.count(at(9000)), Duration::ZERO);
    assert_eq!(limit.packets, 1);
}

#[test]
fn taken_port_message_names_process_and_remedy() {
    let in_use = io::Error::from(ErrorKind::AddrInUse);
    let begin = "other nodes get no reply by UDP from this node when they probe a new datapath, and can only use ICMP echo: UDP port 9471";
    let end = "set agent.port in the chart to a free port";
    let message = |error: &io::Error, found: Option<Listener>| {
        unavailable(9471, error, |_| found.clone()).to_string()
    };
    let process = Some(Listener::Process("process 7 (dnsmasq)".to_owned()));
    assert_eq!(
        message(&in_use, process),
        format!("{begin} is used on this node by process 7 (dnsmasq); end that program, or {end}")
    );
    let unseen = format!(
        "{begin} is used on this node by another program (on the node, ss -ulpn sport = 9471 shows which); end that program, or {end}"
    );
    assert_eq!(message(&in_use, Some(Listener::Unseen)), unseen);
    assert_eq!(message(&in_use, None), unseen);
    let denied = io::Error::from(ErrorKind::PermissionDenied);
    assert_eq!(
        message(&denied, None),
        format!("{begin} cannot be opened: permission denied; {end}")
    );
}
