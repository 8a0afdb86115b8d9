//! A snapshot of all texts that the agent writes into the condition `Ready` of a NodeNetwork.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use ipnet::IpNet;
use netweft_crds::IpFamily;
use netweft_netstate::model::LinkName;

use crate::desired::unreachable::Unreachable;
use crate::firewall::ruleset::{BaseChain, DropsPods};
use crate::reconcile::link_conflicts::LinkConflict;
use crate::status::NO_BLOCK;
use crate::status::cause::Cause;
use crate::status::problem::ProblemKind;
use crate::status::publisher::stalled;

fn link(name: &str) -> LinkName {
    name.parse().unwrap()
}

fn pool() -> String {
    "default-v4".to_owned()
}

fn pools() -> String {
    "IPPools default-v6, lab-v6".to_owned()
}

fn mode() -> String {
    "default".to_owned()
}

fn block() -> IpNet {
    "10.244.1.0/26".parse().unwrap()
}

fn denied() -> String {
    "Permission denied (os error 13)".to_owned()
}

fn not_programmed() -> Vec<Cause> {
    vec![
        Cause::PoolNotReceived { pool: pool() },
        Cause::RelayLinkMissing {
            link: link("nw-udp8285"),
        },
        Cause::RelayNotRunning {
            link: link("nw-udp8285"),
        },
        Cause::FileNotWritten {
            file: "/run/netweft/node.json".into(),
            error: denied(),
        },
        Cause::PluginNotRestored {
            error: "install /opt/cni/bin/netweft: Read-only file system (os error 30)".to_owned(),
        },
        Cause::AttachmentNotRemoved {
            container_id: "4f1c".to_owned(),
            error: denied(),
        },
        Cause::LinkKindUnsupported {
            link: link("nw-ipip"),
            kind: "ipip",
            transmit_only: false,
        },
        Cause::LinkKindUnsupported {
            link: link("nw-vx4096"),
            kind: "vxlan",
            transmit_only: true,
        },
    ]
}

fn foreign() -> Vec<Cause> {
    vec![
        Cause::OtherCniConfiguration {
            file: "/etc/cni/net.d/05-other.conflist".into(),
        },
        Cause::OtherNetworkConfiguration {
            file: "/etc/cni/net.d/05-other.conflist".to_owned(),
        },
        Cause::OtherNetworkRange {
            pool: pool(),
            cidr: block(),
            interface: Some("cni0".to_owned()),
            more: 2,
        },
        Cause::OtherNetworkRange {
            pool: pool(),
            cidr: block(),
            interface: None,
            more: 0,
        },
        Cause::DroppedByLegacyIptables,
        Cause::ChangedRepeatedly {
            object: "route 10.244.1.0/26".to_owned(),
            by: "an unknown program".to_owned(),
            times: 20,
        },
        Cause::Bird {
            error: "BIRD rejects the configuration: bird.conf:12:1 syntax error".to_owned(),
        },
    ]
}

fn invalid_objects() -> Vec<Cause> {
    vec![
        Cause::ObjectUnreadable {
            object: "NodeSubnet 10-244-1-0-26".to_owned(),
            error: "missing field `node`".to_owned(),
        },
        Cause::FileUnreadable {
            file: "/objects/pool.yaml".into(),
            error: "missing field `cidr`".to_owned(),
        },
        Cause::BlockWithoutPool {
            block: block(),
            pool: pool(),
        },
        Cause::BlockOfOtherNode {
            block: block(),
            subnet: "10-244-1-0-26".to_owned(),
        },
        Cause::TunnelMacConflict {
            node: "worker-9".to_owned(),
            owner: "worker-1".to_owned(),
        },
    ]
}

fn invalid_pools_and_modes() -> Vec<Cause> {
    vec![
        Cause::ReservedInvalid {
            pool: pool(),
            text: "10.244.x".to_owned(),
        },
        Cause::NamespaceSelectorInvalid { pool: pool() },
        Cause::KernelWithoutIpv6 {
            pool: "default-v6".to_owned(),
        },
        Cause::TransportUnknown { mode: mode() },
        Cause::NoAddressForMode { mode: mode() },
        Cause::MtuTooSmallForIpv6 {
            pool: "default-v6".to_owned(),
            mode: mode(),
            mtu: 1230,
        },
        Cause::PodInterfacesMixed {
            one: pool(),
            other: "default-v6".to_owned(),
        },
        Cause::NftablesInetUnsupported { pools: pools() },
    ]
}

fn notes() -> Vec<Cause> {
    vec![
        Cause::FilterUnsupported,
        Cause::BridgeFilterUnsupported,
        Cause::ProbePortUnavailable {
            port: 9471,
            reason: "is used on this node by process 4711 (dns); end that program, or".to_owned(),
        },
        Cause::TunnelAddressTaken {
            address: "10.244.1.1".parse().unwrap(),
            block: block(),
            pool: pool(),
        },
        Cause::MtuTooLarge {
            mode: mode(),
            mtu: 1500,
            link: link("ens7"),
            link_mtu: 1500,
            overhead: 50,
        },
        Cause::MtuTooLarge {
            mode: mode(),
            mtu: 9000,
            link: link("ens7"),
            link_mtu: 1500,
            overhead: 0,
        },
        Cause::AttachmentUnreadable {
            address: "10.244.1.7".parse().unwrap(),
            error: "EOF while parsing a value at line 1 column 0".to_owned(),
        },
        Cause::PodWithoutRecord {
            link: link("nw1a2b3c4d5e"),
        },
        Cause::StoreLocked {
            file: "/run/netweft/lock".into(),
        },
    ]
}

fn causes() -> Vec<Cause> {
    [
        not_programmed(),
        foreign(),
        invalid_objects(),
        invalid_pools_and_modes(),
        notes(),
    ]
    .concat()
}

fn unreachable() -> Vec<Unreachable> {
    let (peer, mode) = ("worker-2".to_owned(), "default".to_owned());
    let block = "10.244.2.0/26".parse().unwrap();
    vec![
        Unreachable::NoNodeAddress {
            family: IpFamily::Ipv6,
            peer: peer.clone(),
            without_address: "worker-2".to_owned(),
            mode: mode.clone(),
        },
        Unreachable::NotOnLink {
            peer: peer.clone(),
            address: "192.0.2.2".parse().unwrap(),
            own: "198.51.100.1".parse().unwrap(),
            link: Some("ens7".to_owned()),
            mode: mode.clone(),
        },
        Unreachable::NoTunnelEndpoint {
            block,
            peer: peer.clone(),
            family: IpFamily::Ipv4,
            mode: mode.clone(),
        },
        Unreachable::NotCarriedByIpip {
            block,
            peer: peer.clone(),
            mode,
        },
        Unreachable::ContainsGateway {
            block,
            peer,
            gateway: "10.244.9.1".parse().unwrap(),
        },
        Unreachable::NoRoute(block),
    ]
}

fn link_conflicts() -> Vec<LinkConflict> {
    let (link, other) = (link("nw-vx4096"), link("flannel.1"));
    let (vni, port) = (4096, 4789);
    vec![
        LinkConflict::Addresses {
            link: "nw-ipip".parse().unwrap(),
            other: "tunl0".parse().unwrap(),
        },
        LinkConflict::Vni {
            link: link.clone(),
            vni,
            port,
            other: other.clone(),
        },
        LinkConflict::PortOfLink {
            link: link.clone(),
            port,
            other,
        },
        LinkConflict::PortOfProcess {
            link: link.clone(),
            port,
            process: "process 4711 (dns)".to_owned(),
        },
        LinkConflict::PortOfUnseenProcess {
            link: link.clone(),
            port,
        },
        LinkConflict::Unknown { link, vni, port },
    ]
}

fn drops() -> Vec<DropsPods> {
    let chain = |family, name| BaseChain::new(family, "filter", name);
    [("ip", "FORWARD", true), ("inet", "forward", false)]
        .map(|(family, name, certain)| DropsPods {
            chain: chain(family, name),
            certain,
        })
        .into()
}

/// Panics unless each variant of the type, whose source is `source`, has a sample.
fn assert_complete<T>(samples: &[T], source: &str) {
    let variants: BTreeMap<String, Discriminant<T>> = samples
        .iter()
        .map(discriminant)
        .map(|it| (format!("{it:?}"), it))
        .collect();
    assert_eq!(variants.len(), source.matches("#[error(").count());
}

fn section(texts: &mut String, title: &str, messages: impl IntoIterator<Item = impl Display>) {
    writeln!(texts, "{title}").unwrap();
    for message in messages {
        writeln!(texts, "  - {message}").unwrap();
    }
    texts.push('\n');
}

#[test]
fn texts_of_node_problems_match_snapshot() {
    let (causes, unreachable, conflicts) = (causes(), unreachable(), link_conflicts());
    assert_complete(&causes, include_str!("status/cause.rs"));
    assert_complete(&unreachable, include_str!("desired/unreachable.rs"));
    assert_complete(&conflicts, include_str!("reconcile/link_conflicts.rs"));
    let mut texts = String::new();
    for kind in ProblemKind::ALL {
        let title = kind.reason().map_or("Note", |reason| reason.as_str());
        let of_kind = causes.iter().filter(|cause| cause.kind() == kind);
        let messages = of_kind.map(|cause| format!("[{}] {cause}", cause.subject()));
        section(&mut texts, title, messages);
    }
    section(&mut texts, "NoSubnet", [NO_BLOCK]);
    let stalled = stalled(Duration::from_secs(60)).message;
    section(&mut texts, "AgentStalled", [stalled]);
    section(&mut texts, "Invalid: unreachable nodes", unreachable);
    section(&mut texts, "ProgrammingFailed: link conflicts", conflicts);
    section(&mut texts, "ForeignObject, Note: firewalls", drops());
    insta::assert_snapshot!("condition_texts", texts);
}
