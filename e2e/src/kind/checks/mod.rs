//! What must be true of a cluster with netweft.
//!
//! The order matters: what only looks comes first, what breaks something comes last and leaves things as they were; the last takes
//! netweft away.

pub(super) mod addresses;
mod bandwidth;
mod bgp;
mod change;
mod drift;
mod faults;
mod modes;
mod nodes;
mod objects;
mod other_kernel;
mod pools;
mod privileges;
mod relay;
pub(super) mod rollout;
mod services;
mod traffic;
mod uninstall;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::ValueEnum;

use crate::kind::kubectl::get;
use crate::kind::probes::Probes;
use crate::kind::residue::Residue;
use crate::lab::LabMode;

/// The cluster under test.
pub struct Cluster {
    /// The test pods.
    pub probes: Probes,
    /// Image of the test pods.
    pub image: String,
    /// The project's folder.
    pub project: PathBuf,
    /// How packets travel.
    pub mode: LabMode,
    /// Tag of all images but BIRD's.
    pub tag: String,
    /// Tag of BIRD's.
    pub bird_tag: String,
    /// The nodes before netweft was installed; `None` where it was there already.
    pub before: Option<Residue>,
}

type Check = (&'static str, fn(&mut Cluster) -> anyhow::Result<()>);

/// Which checks to run; each kind has those before it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Checks {
    /// What every mode and every kind of pod has to pass.
    Basic,
    /// What happens in the life of a cluster.
    Life,
    /// What takes long.
    Full,
}

macro_rules! checks {
    ($($module:ident :: $name:ident),* $(,)?) => {
        [$((stringify!($name), $module::$name as fn(&mut Cluster) -> anyhow::Result<()>)),*]
    };
}

/// What every mode and every kind of pod has to pass.
const BASIC: &[Check] = &checks![
    traffic::every_pair_pings,
    traffic::packets_of_mtu_size_pass,
    traffic::server_in_cluster_sees_pod_address,
    traffic::server_outside_cluster_sees_node_address,
    traffic::pod_containers_share_network_namespace,
    services::dns_resolves_service_name,
    services::cluster_ip_reaches_pods,
    services::node_port_reaches_pods,
    services::host_port_reaches_pod,
];

/// What a cluster of mode underlay has to pass besides.
const UNDERLAY: &[Check] = &checks![
    bgp::underlay_blocks_are_routed_only_by_bgp,
    bgp::mesh_replacement_by_router_loses_no_packets,
    bgp::killed_bird_processes_lose_no_packets,
    bgp::bird_rollout_loses_no_packets,
    bgp::release_upgrade_keeps_bgp_sessions,
    privileges::bird_needs_each_of_its_privileges,
];

/// What a cluster with the udp relay has to pass besides.
const RELAY: &[Check] = &checks![
    relay::relay_rollout_loses_no_packets,
    privileges::relay_needs_each_of_its_privileges,
];

/// What happens in the life of a cluster.
const LIFE: &[Check] = &checks![
    objects::invalid_objects_are_refused_with_reason,
    objects::unsupported_network_mode_is_stalled_with_reason,
    addresses::deleted_pod_frees_its_address,
    nodes::node_without_agent_starts_and_stops_pods,
    drift::external_changes_are_repaired_and_reported,
    change::mode_change_loses_no_packets,
    faults::killed_agents_lose_no_packets,
    faults::killed_operators_lose_no_packets,
    faults::api_server_outage_loses_no_packets,
    nodes::new_node_joins_and_deleted_node_is_removed,
];

/// What takes long.
const FULL: &[Check] = &checks![
    modes::pods_of_all_modes_reach_each_other,
    pools::pool_requested_by_pod_is_drained_and_deleted,
    bandwidth::bandwidth_annotation_limits_pod_rate,
    addresses::hundred_pods_created_and_deleted_leave_nothing,
    other_kernel::nodes_on_another_kernel_carry_pods,
    privileges::agent_needs_each_of_its_privileges,
    uninstall::uninstall_keeps_pods_and_leaves_nodes_clean,
];

/// What a cluster of this mode has to pass besides.
fn own(mode: LabMode) -> &'static [Check] {
    match mode {
        LabMode::Underlay => UNDERLAY,
        LabMode::Udp | LabMode::UdpCrossSubnet => RELAY,
        LabMode::Vxlan
        | LabMode::Ipip
        | LabMode::HostGw
        | LabMode::VxlanCrossSubnet
        | LabMode::IpipCrossSubnet => &[],
    }
}

/// Run the checks that have `only` in their name. Returns how many passed and how many failed; each result is printed.
#[must_use]
pub fn run(cluster: &mut Cluster, checks: Checks, only: &str) -> (usize, usize) {
    let (mut passed, mut failed) = (0, 0);
    let kinds = [
        (Checks::Basic, BASIC),
        (Checks::Basic, own(cluster.mode)),
        (Checks::Life, LIFE),
        (Checks::Full, FULL),
    ];
    let chosen = kinds.iter().filter(|(kind, _)| *kind <= checks);
    let named = |(name, _): &&Check| name.contains(only);
    for (name, check) in chosen.flat_map(|(_, list)| *list).filter(named) {
        let started = Instant::now();
        let outcome = check(cluster);
        let took = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({took:.1} s)");
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED ({took:.1} s)\n  {error:#}");
            }
        }
    }
    (passed, failed)
}

impl Cluster {
    /// Bytes of the largest packet of a pod, as the agents say.
    fn pod_mtu(&self) -> anyhow::Result<u64> {
        let networks = get(&["nodenetworks"])?;
        let mtus = crate::kind::kubectl::items(&networks).map(|network| {
            network
                .pointer("/status/mtu")
                .and_then(serde_json::Value::as_u64)
        });
        mtus.min().flatten().context("the agents tell no MTU")
    }
}
