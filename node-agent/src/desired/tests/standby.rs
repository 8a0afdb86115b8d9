//! Standby datapaths, which exist while a mode changes.

use netweft_crds::{EncapsulateWhen, ProbeProtocol, UdpParameters, VxlanParameters};

use crate::desired::tests::*;

/// The cluster of [`inputs`] with a standby datapath.
fn with_standby(transport: Transport) -> Inputs {
    let mut inputs = inputs();
    let mut standby = inputs.modes[0].clone();
    standby.transport = transport.into();
    standby.standby_pools = std::mem::take(&mut standby.pools);
    inputs.modes.push(standby);
    inputs
}

/// The routes to one block.
fn routes(desired: &Desired) -> Vec<String> {
    let block: IpNet = "10.244.0.64/26".parse().unwrap();
    let to = desired
        .kernel
        .routes
        .iter()
        .filter(|(key, _)| key.dst == block);
    to.map(|(key, route)| format!("{} {route}", key.metric))
        .collect()
}

#[test]
fn standby_route_has_higher_metric_and_lower_mtu_applies() {
    let desired = desired(&with_standby(Transport::Direct), &facts());
    assert_eq!(
        routes(&desired),
        [
            "20  via 10.244.0.64 dev nw-vx4096 onlink src 10.244.0.1",
            "89  via 192.0.2.2 dev uplink1",
        ]
    );
    assert_eq!(desired.plugin.pools[0].mtu, 1350);
    let mut back = with_standby(Transport::Direct);
    let [vxlan, direct] = &mut back.modes[..] else {
        panic!("two modes");
    };
    std::mem::swap(&mut vxlan.pools, &mut direct.pools);
    std::mem::swap(&mut vxlan.standby_pools, &mut direct.standby_pools);
    let desired = super::desired(&back, &facts());
    assert_eq!(
        routes(&desired),
        [
            "20  via 192.0.2.2 dev uplink1 mtu 1350",
            "88  via 10.244.0.64 dev nw-vx4096 onlink src 10.244.0.1",
        ]
    );
    assert_eq!(desired.plugin.pools[0].mtu, 1350);
}

#[test]
fn direct_transport_puts_tunnel_address_on_own_link() {
    let on_own_link = |inputs: &Inputs| {
        let desired = desired(inputs, &facts());
        let own = desired.kernel.addresses.keys();
        own.filter(|key| key.link.as_str() == "nw-own")
            .map(|key| key.net.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(on_own_link(&inputs()), [""; 0]);
    assert_eq!(
        on_own_link(&with_standby(Transport::Direct)),
        ["10.244.0.1/32"]
    );
    let mut bridged = with_standby(Transport::Direct);
    bridged
        .pools
        .values_mut()
        .for_each(|pool| pool.pod_interface = PodInterface::Bridge);
    assert_eq!(on_own_link(&bridged), [""; 0], "the bridge has the address");
}

#[test]
fn modes_with_same_vxlan_share_link_and_smaller_mtu() {
    let mut inputs = with_standby(Transport::Vxlan(VxlanParameters::default()));
    inputs.modes[1].mtu = 1300;
    inputs.modes[1].encapsulate_when = EncapsulateWhen::CrossSubnet;
    let desired = desired(&inputs, &facts());
    let links: Vec<String> = desired
        .kernel
        .links
        .iter()
        .map(|(name, link)| format!("{name} {}", link.mtu))
        .collect();
    assert_eq!(links, ["nw-vx4096 1300"]);
    assert_eq!(routes(&desired).len(), 2);
}

#[test]
fn vxlan_links_with_different_vni_or_port_are_separate() {
    let other = VxlanParameters {
        vni: 0x00ff_ffff,
        port: 65535,
    };
    let desired = desired(&with_standby(Transport::Vxlan(other)), &facts());
    let names: Vec<String> = desired
        .kernel
        .links
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["nw-vffffffpffff", "nw-vx4096"]);
}

#[test]
fn standby_udp_mode_configures_relay_peers() {
    let desired = desired(
        &with_standby(Transport::Udp(UdpParameters::default())),
        &facts(),
    );
    assert_eq!(desired.relay.tunnels[0].peers.len(), 2);
    assert_eq!(routes(&desired).len(), 1, "the link does not exist yet");
    assert!(!not_programmed(&desired).is_empty());
    assert!(desired.probes[0].targets["worker-2"].unreachable.is_some());
}

#[test]
fn probes_use_protocol_of_network_mode() {
    for protocol in [ProbeProtocol::Auto, ProbeProtocol::Icmp, ProbeProtocol::Udp] {
        let mut inputs = with_standby(Transport::Direct);
        inputs.modes[1].probe = protocol;
        let probe_plan = &desired(&inputs, &facts()).probes[0];
        let targets = probe_plan.targets.values();
        let mut probes = targets.flat_map(|target| &target.probes);
        assert!(probes.all(|probe| probe.protocol == protocol));
    }
    let mut inputs = with_standby(Transport::Direct);
    inputs.modes[1].probe = ProbeProtocol::None;
    assert_eq!(desired(&inputs, &facts()).probes, []);
}

#[test]
fn probes_to_all_nodes_use_pool_source_address() {
    let desired = desired(&with_standby(Transport::Direct), &facts());
    let probe_plan = &desired.probes[0];
    let names: Vec<&String> = probe_plan.targets.keys().collect();
    assert_eq!(names, ["worker-2", "worker-3"]);
    let probes = &probe_plan.targets["worker-2"].probes;
    let described: Vec<String> = probes
        .iter()
        .map(|it| format!("{} {} {}", it.link, it.from.unwrap(), it.to))
        .collect();
    assert_eq!(
        described,
        [
            "uplink1 10.244.0.1 10.244.0.65",
            "uplink1 10.244.0.1 10.244.0.129"
        ]
    );
    let without_replies = probe_plan.status(&BTreeSet::new(), Some("cause"), 9471);
    assert_eq!(
        (
            without_replies.probed,
            without_replies.unreachable.len(),
            without_replies.message.as_deref()
        ),
        (2, 2, Some("cause"))
    );
    // A reply from the oldest of the two blocks is enough.
    let answered: BTreeSet<_> = probes.iter().take(1).cloned().collect();
    assert_eq!(
        probe_plan.status(&answered, None, 9471).unreachable,
        ["worker-3"]
    );
}

#[test]
fn probe_targets_of_large_cluster_are_sixteen_and_vary() {
    let mut inputs = with_standby(Transport::Direct);
    let first = inputs.remote[0].clone();
    inputs.remote = (0..40_u8)
        .map(|n| RemoteBlock {
            cidr: format!("10.244.9.{n}/32").parse().unwrap(),
            node: format!("peer-{n}"),
            ..first.clone()
        })
        .collect();
    let targets = |node: &str| {
        let mut inputs = inputs.clone();
        inputs.node = node.to_owned();
        let probes = desired(&inputs, &facts()).probes;
        probes[0].targets.keys().cloned().collect::<BTreeSet<_>>()
    };
    assert_eq!(targets("one").len(), 16);
    assert_eq!(targets("one"), targets("one"));
    assert_ne!(targets("one"), targets("two"));
}

#[test]
fn bgp_probe_succeeds_when_bird_has_route_to_block() {
    let inputs = with_standby(Transport::Bgp);
    let mut facts = facts();
    let probe_plan = |facts: &HostFacts| desired(&inputs, facts).probes[0].clone();
    assert_eq!(probe_plan(&facts).transport, Transport::Bgp);
    assert_eq!(
        probe_plan(&facts)
            .status(&BTreeSet::new(), None, 9471)
            .message
            .unwrap(),
        "there is no route to 10.244.0.128/26"
    );
    for block in ["10.244.0.64/26", "10.244.0.128/26", "10.244.1.0/26"] {
        facts.bgp_routes.insert(block.parse().unwrap(), None);
    }
    assert!(
        probe_plan(&facts)
            .status(&BTreeSet::new(), None, 9471)
            .unreachable
            .is_empty()
    );
}
