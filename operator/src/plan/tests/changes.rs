//! Changes of the datapath between nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use netweft_crds::{NodeMode, Phase, ProbeProtocol, Transport};

use crate::testing::{Cluster, at, cluster, mode, node, vxlan};

/// A settled cluster whose mode is edited to host-gw.
fn changing(nodes: usize) -> Cluster {
    let mut cluster = cluster(nodes);
    cluster.settle();
    cluster.agents_report(0);
    cluster.settle();
    cluster.edit_mode("{mode: host-gw}");
    cluster
}

/// What each node sends by, and what stands by.
fn datapaths(cluster: &Cluster) -> Vec<String> {
    let of = |modes: &[NodeMode], list: fn(&NodeMode) -> &Vec<String>| {
        let chosen = modes.iter().filter(|mode| !list(mode).is_empty());
        chosen
            .map(|mode| mode.transport.get().unwrap().to_string())
            .collect::<Vec<_>>()
            .join("+")
    };
    let nodes = cluster.networks.iter().map(|network| {
        let modes = &network.spec.modes;
        let standby = of(modes, |mode| &mode.standby_pools);
        let slash = if standby.is_empty() { "" } else { "/" };
        format!("{}{slash}{standby}", of(modes, |mode| &mode.pools))
    });
    nodes.collect()
}

fn phase(cluster: &Cluster) -> Phase {
    cluster.modes[0].status.as_ref().unwrap().phase.unwrap()
}

fn message(cluster: &Cluster) -> String {
    let status = cluster.modes[0].status.as_ref().unwrap();
    let ready = status
        .conditions
        .iter()
        .find(|it| it.type_ == "Ready")
        .unwrap();
    format!("{}: {}", ready.reason, ready.message)
}

#[test]
fn mode_change_proceeds_in_phases_and_node_by_node() {
    let mut cluster = changing(3);
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw"; 3]);
    assert_eq!(phase(&cluster), Phase::Preparing);
    let from = cluster.modes[0]
        .status
        .as_ref()
        .unwrap()
        .from
        .clone()
        .unwrap();
    assert_eq!(
        serde_json::to_string(&from).unwrap(),
        r#"{"mode":"overlay","encapsulation":"vxlan"}"#
    );
    // The agents have what it takes, but not yet tried it.
    cluster.agents_report(0);
    cluster.settle();
    assert_eq!(
        (phase(&cluster), datapaths(&cluster)[0].as_str()),
        (Phase::Preparing, "vxlan/host-gw")
    );
    cluster.agents_try(&[]);
    for switched in 1..=3 {
        cluster.settle();
        assert_eq!(phase(&cluster), Phase::Switching);
        let expected = |n| {
            if n < switched {
                "host-gw/vxlan"
            } else {
                "vxlan/host-gw"
            }
        };
        assert_eq!(
            datapaths(&cluster),
            (0..3).map(expected).collect::<Vec<_>>()
        );
        assert!(message(&cluster).contains(&format!(
            "from vxlan to host-gw: {} of 3 nodes",
            switched - 1
        )));
        cluster.agents_try(&[]);
    }
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["host-gw"; 3]);
    assert_eq!(phase(&cluster), Phase::Retiring);
    cluster.agents_report(0);
    cluster.settle();
    assert_eq!(phase(&cluster), Phase::Stable);
    assert!(cluster.modes[0].status.as_ref().unwrap().from.is_none());
    assert_eq!(message(&cluster), "Programmed: 3 of 3 nodes programmed");
}

#[test]
fn mode_change_waits_while_probe_of_node_fails() {
    let mut cluster = changing(3);
    cluster.settle();
    cluster.agents_try(&["worker-3"]);
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw"; 3]);
    assert_eq!(
        message(&cluster),
        "Preparing: from vxlan to host-gw: nodes prepare the new datapath and probe it; traffic stays on the old datapath until all probes succeed; waiting for worker-1, worker-2; worker-1 gets no reply over host-gw from worker-3 to ICMP echo or UDP port 9471; allow ICMP echo or UDP port 9471 between nodes, or set spec.rollout.probe to none"
    );
    // Nodes that are not there any more are not heard either.
    cluster.agents_try(&["worker-9"]);
    cluster.settle();
    assert_eq!(phase(&cluster), Phase::Switching);
}

#[test]
fn probe_setting_applies_only_to_standby_mode() {
    let probes = |cluster: &Cluster| {
        let modes = cluster.networks.iter().flat_map(|it| &it.spec.modes);
        modes.map(|mode| mode.probe).collect::<BTreeSet<_>>()
    };
    let mut cluster = changing(3);
    for (probe, expected) in [
        ("udp", ProbeProtocol::Udp),
        ("icmp", ProbeProtocol::Icmp),
        ("none", ProbeProtocol::None),
        ("auto", ProbeProtocol::Auto),
        ("udp", ProbeProtocol::Udp),
    ] {
        cluster.edit_mode(&format!("{{mode: host-gw, rollout: {{probe: {probe}}}}}"));
        cluster.settle();
        let told = probes(&cluster);
        assert!(told.contains(&expected), "{probe}: {told:?}");
        assert!(
            told.is_subset(&[expected, ProbeProtocol::Auto].into()),
            "{told:?}"
        );
    }
    cluster.follow();
    assert_eq!(phase(&cluster), Phase::Stable);
    assert_eq!(probes(&cluster), [ProbeProtocol::Auto].into());
}

#[test]
fn probe_none_lets_mode_change_proceed() {
    let mut cluster = changing(3);
    let follow = |cluster: &mut Cluster| {
        for _ in 0..8 {
            cluster.settle();
            cluster.agents_try(&["worker-2"]);
        }
    };
    follow(&mut cluster);
    assert_eq!(phase(&cluster), Phase::Preparing);
    // Every node still has to have what it takes.
    let status = cluster.networks[0].status.as_mut().unwrap();
    status.observed_generation = Some(0);
    cluster.edit_mode("{mode: host-gw, rollout: {probe: none}}");
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw"; 3]);
    follow(&mut cluster);
    assert_eq!(phase(&cluster), Phase::Stable);
}

#[test]
fn unacknowledged_node_network_holds_mode_change() {
    let mut cluster = changing(3);
    cluster.settle();
    cluster.agents_try(&[]);
    cluster.settle();
    // worker-1 is told to switch, and says nothing: neither does the next switch, nor is the previous datapath taken from anybody.
    let silent = cluster.networks[0].status.clone();
    for _ in 0..3 {
        cluster.agents_try(&[]);
        cluster.networks[0].status = silent.clone();
        cluster.settle();
    }
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/vxlan", "vxlan/host-gw", "vxlan/host-gw"]
    );
    assert_eq!(
        cluster.modes[0]
            .status
            .as_ref()
            .unwrap()
            .nodes
            .as_ref()
            .unwrap()
            .pending[0],
        "worker-1"
    );
}

#[test]
fn long_not_ready_node_is_skipped_in_mode_change() {
    let mut cluster = changing(3);
    cluster.settle();
    let away = cluster.networks[2].status.clone();
    let step = |cluster: &mut Cluster| {
        cluster.agents_try(&["worker-3"]);
        cluster.networks[2].status = away.clone();
        cluster.settle();
    };
    step(&mut cluster);
    assert_eq!(phase(&cluster), Phase::Preparing);
    cluster
        .not_ready
        .insert("worker-3".to_owned(), Duration::from_secs(599));
    step(&mut cluster);
    assert_eq!(phase(&cluster), Phase::Preparing);
    cluster
        .not_ready
        .insert("worker-3".to_owned(), Duration::from_secs(600));
    step(&mut cluster);
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/vxlan", "vxlan/host-gw", "host-gw/vxlan"]
    );
    assert!(
        message(&cluster).ends_with("not waiting for worker-3: Node not Ready"),
        "{}",
        message(&cluster)
    );
    step(&mut cluster);
    step(&mut cluster);
    // When it comes back it sends nothing old.
    assert_eq!(datapaths(&cluster), ["host-gw"; 3]);
    step(&mut cluster);
    assert_eq!(phase(&cluster), Phase::Stable);
}

/// The last writes of a change come one by one, and one of them may fail.
#[test]
fn removed_old_transport_does_not_return_to_node() {
    let mut cluster = changing(3);
    for _ in 0..4 {
        cluster.settle();
        cluster.agents_try(&[]);
    }
    let before = cluster.networks[2].clone();
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["host-gw"; 3]);
    cluster.networks[2] = before;
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["host-gw"; 3]);
}

#[test]
fn node_with_failed_probe_does_not_switch_transport() {
    let mut cluster = changing(3);
    cluster.settle();
    cluster.agents_try(&[]);
    cluster.settle();
    assert_eq!(datapaths(&cluster)[0], "host-gw/vxlan");
    cluster.agents_try(&[]);
    cluster.networks[1].status.as_mut().unwrap().probes[0].unreachable =
        vec!["worker-3".to_owned()];
    cluster.settle();
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/vxlan", "vxlan/host-gw", "host-gw/vxlan"]
    );
}

#[test]
fn reverted_mode_edit_switches_nodes_back() {
    let mut cluster = changing(2);
    cluster.settle();
    cluster.agents_try(&[]);
    cluster.settle();
    cluster.agents_try(&[]);
    assert_eq!(datapaths(&cluster), ["host-gw/vxlan", "vxlan/host-gw"]);
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: vxlan}}");
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw", "vxlan/host-gw"]);
    cluster.agents_try(&[]);
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["vxlan"; 2]);
}

#[test]
fn second_edit_during_change_keeps_all_used_transports() {
    let mut cluster = changing(2);
    cluster.settle();
    cluster.agents_try(&[]);
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["host-gw/vxlan", "vxlan/host-gw"]);
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: udp}}");
    cluster.settle();
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/udp+vxlan", "vxlan/udp+host-gw"]
    );
    assert_eq!(phase(&cluster), Phase::Preparing);
}

#[test]
fn node_joining_during_mode_change_uses_same_transports() {
    let mut cluster = changing(2);
    cluster.settle();
    cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw"; 3]);
    // Nobody waits for it before its agent has said anything.
    let silent = cluster.networks[2].status.clone();
    cluster.agents_try(&["worker-3"]);
    cluster.networks[2].status = silent;
    cluster.settle();
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/vxlan", "vxlan/host-gw", "host-gw/vxlan"]
    );
}

/// A cluster of three with a fourth Node on which no agent ever speaks.
fn with_a_mute_node() -> Cluster {
    let mut cluster = cluster(3);
    cluster.nodes.push(node("mute", &["10.9.9.9"]));
    cluster
}

/// All agents carry out what they are told, but for that of `mute`, which there is none of.
fn all_but_mute_follow(cluster: &mut Cluster) {
    for _ in 0..10 {
        cluster.settle();
        cluster.agents_try(&["mute"]);
        for network in &mut cluster.networks {
            if network.name_any() == "mute" {
                network.status = None;
            }
        }
    }
    cluster.settle();
}

#[test]
fn node_without_agent_does_not_hold_mode_change() {
    let mut cluster = with_a_mute_node();
    all_but_mute_follow(&mut cluster);
    assert_eq!(
        message(&cluster),
        "Programming: 3 of 4 nodes programmed; waiting for mute"
    );
    let too_long = Duration::from_secs(600);
    cluster.unacknowledged.insert("mute".to_owned(), too_long);
    all_but_mute_follow(&mut cluster);
    let named = "Programmed: 3 of 4 nodes programmed; not waiting for mute: NodeNetwork not acknowledged within spec.rollout.progressDeadline";
    assert_eq!(message(&cluster), named);
    cluster.edit_mode("{mode: host-gw}");
    all_but_mute_follow(&mut cluster);
    assert_eq!(
        (phase(&cluster), message(&cluster).as_str()),
        (Phase::Stable, named)
    );
    assert_eq!(datapaths(&cluster), ["host-gw"; 4]);
    // An agent that comes after all is waited for like any other.
    cluster.unacknowledged.clear();
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: vxlan}}");
    cluster.follow();
    assert_eq!(message(&cluster), "Programmed: 4 of 4 nodes programmed");
}

#[test]
fn silent_agent_holds_mode_change_until_deadline() {
    let mut cluster = changing(3);
    cluster.settle();
    let last_word = cluster.networks[2].status.clone();
    let follow = |cluster: &mut Cluster| {
        for _ in 0..6 {
            cluster.agents_try(&["worker-3"]);
            cluster.networks[2].status.clone_from(&last_word);
            cluster.settle();
        }
    };
    let silent = |seconds| (String::from("worker-3"), Duration::from_secs(seconds));
    cluster.unacknowledged.extend([silent(599)]);
    follow(&mut cluster);
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw"; 3]);
    cluster.unacknowledged.extend([silent(600)]);
    follow(&mut cluster);
    assert_eq!(
        (phase(&cluster), datapaths(&cluster)),
        (Phase::Stable, vec!["host-gw".to_owned(); 3])
    );
}

#[test]
fn mode_without_working_agents_is_not_ready() {
    let mut cluster = cluster(1);
    cluster.settle();
    cluster.unacknowledged = [("worker-1".to_owned(), Duration::from_secs(600))].into();
    cluster.settle();
    assert!(
        message(&cluster).starts_with("Programming: 0 of 1 node programmed; not waiting for"),
        "{}",
        message(&cluster)
    );
}

#[test]
fn pool_with_new_network_mode_changes_in_phases() {
    let mut cluster = cluster(2);
    cluster.modes.push(at(
        1,
        mode("next", "{mode: host-gw, rollout: {maxConcurrent: 100%}}"),
    ));
    cluster.settle();
    cluster.agents_try(&[]);
    cluster.settle();
    cluster.pools[0].spec.network_mode = "next".to_owned();
    cluster.settle();
    let names = |cluster: &Cluster| -> Vec<String> {
        let modes = cluster.networks[0].spec.modes.iter();
        modes
            .map(|mode| {
                format!(
                    "{} {}/{}",
                    mode.name,
                    mode.pools.len(),
                    mode.standby_pools.len()
                )
            })
            .collect()
    };
    assert_eq!(names(&cluster), ["default 1/0", "next 0/1"]);
    cluster.agents_try(&[]);
    cluster.settle();
    assert_eq!(names(&cluster), ["default 0/1", "next 1/0"]);
    assert_eq!(datapaths(&cluster), ["host-gw/vxlan"; 2], "all at once");
    cluster.agents_try(&[]);
    cluster.settle();
    assert_eq!(names(&cluster), ["next 1/0"]);
}

#[test]
fn mode_change_with_conflicting_ports_is_immediate() {
    let mut cluster = cluster(2);
    cluster.modes[0] = at(
        0,
        mode(
            "default",
            "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {port: 8285}}}",
        ),
    );
    cluster.settle();
    cluster.agents_try(&[]);
    cluster.settle();
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: udp}}");
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["udp"; 2]);
}

#[test]
fn only_transport_edits_start_mode_change() {
    for (spec, change) in [
        (
            "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {port: 4790}}}",
            true,
        ),
        (
            "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {vni: 7}}}",
            true,
        ),
        (
            "{mode: overlay, overlay: {encapsulation: vxlan, encapsulateWhen: cross-subnet}}",
            true,
        ),
        (
            "{mode: overlay, overlay: {encapsulation: vxlan}, mtu: 1300}",
            true,
        ),
        (
            "{mode: overlay, overlay: {encapsulation: vxlan}, rollout: {maxConcurrent: 1}}",
            false,
        ),
    ] {
        let mut cluster = cluster(1);
        cluster.settle();
        cluster.agents_try(&[]);
        cluster.settle();
        cluster.edit_mode(spec);
        cluster.settle();
        assert_eq!(phase(&cluster) == Phase::Preparing, change, "{spec}");
    }
}

#[test]
fn rollout_at_once_limits_switching_nodes() {
    for (at_once, expected) in [
        (IntOrString::Int(2), 2),
        (IntOrString::String("30%".to_owned()), 3),
        (IntOrString::String("1%".to_owned()), 1),
    ] {
        let mut cluster = changing(10);
        cluster.modes[0].spec.rollout.max_concurrent = at_once.clone();
        cluster.settle();
        cluster.agents_try(&[]);
        cluster.settle();
        let switched = datapaths(&cluster)
            .iter()
            .filter(|it| it.starts_with("host-gw"))
            .count();
        assert_eq!(switched, expected, "{at_once:?}");
    }
}

#[test]
fn bgp_stays_while_node_may_use_underlay_routes() {
    let mut cluster = cluster(2);
    cluster.modes[0] = at(0, mode("default", "{mode: underlay}"));
    cluster.settle();
    cluster.agents_try(&[]);
    cluster.settle();
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: vxlan}}");
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["underlay/vxlan"; 2]);
    assert!(cluster.networks.iter().all(|it| it.spec.bgp.is_some()));
    for _ in 0..3 {
        cluster.agents_try(&[]);
        cluster.settle();
    }
    assert_eq!(datapaths(&cluster), ["vxlan"; 2]);
    assert!(cluster.networks.iter().all(|it| it.spec.bgp.is_none()));
}

#[test]
fn change_to_underlay_keeps_old_transport_at_first() {
    let mut cluster = changing(2);
    cluster.edit_mode("{mode: underlay}");
    cluster.settle();
    assert_eq!(datapaths(&cluster), ["vxlan/underlay"; 2]);
    assert!(cluster.networks.iter().all(|it| it.spec.bgp.is_some()));
    let direct = Transport::Bgp;
    assert!(
        cluster.networks[0]
            .spec
            .modes
            .iter()
            .any(|it| it.transport.get() == Some(direct))
    );
}

/// Two edits of two modes at the same time do not disturb each other.
#[test]
fn simultaneous_mode_changes_are_independent() {
    let mut cluster = cluster(2);
    cluster.modes.push(at(1, vxlan("other", 7)));
    let mut other = at(1, crate::testing::pool("other", "10.9.0.0/16", ""));
    other.spec.network_mode = "other".to_owned();
    cluster.pools.push(other);
    cluster.settle();
    cluster.agents_try(&[]);
    cluster.settle();
    cluster.edit_mode("{mode: host-gw}");
    cluster.settle();
    assert_eq!(phase(&cluster), Phase::Preparing);
    assert_eq!(
        cluster.modes[1].status.as_ref().unwrap().phase,
        Some(Phase::Stable)
    );
}
