use crate::inputs::host_facts::tests::*;

/// Protocol of a route from a router advertisement.
const PROTOCOL_RA: u8 = 9;

#[test]
fn accept_ra_links_are_hardware_and_links_with_ra_route() {
    let mut state = state();
    let other = |kind: &str| LinkKind::Other(kind.to_owned());
    for (name, kind) in [
        ("lo", other("")),
        ("ens8", other("")),
        ("bond0", other("bond")),
        ("ens8.7", other("vlan")),
        ("bwp0", other("ifb")),
        ("tap0", LinkKind::Tun),
        ("nw-br0", LinkKind::Bridge),
        ("nw0123456789a", LinkKind::Veth),
        ("guests0", LinkKind::Bridge),
        ("vm0", LinkKind::Bridge),
    ] {
        state.links.insert(name.parse().unwrap(), link(kind));
    }
    let (key, route) = default_route("vm0", PROTOCOL_RA);
    state.routes.insert(key, route);
    let inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
    let found = derive(&state, &inputs).unwrap().accept_ra_links;
    let found: Vec<&str> = found.iter().map(LinkName::as_str).collect();
    assert_eq!(found, ["bond0", "ens8", "ens8.7", "vm0"]);
}
