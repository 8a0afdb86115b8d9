//! The checks of a cluster with netweft.
//!
//! The order matters. Checks that change nothing come first. Checks that cause failures follow, and restore the cluster. The last
//! check uninstalls netweft.

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
    /// The directory of the repository.
    pub project: PathBuf,
    /// The mode of the default NetworkMode.
    pub mode: LabMode,
    /// Tag of all images except BIRD's.
    pub tag: String,
    /// Tag of the image of BIRD.
    pub bird_tag: String,
    /// The state of the nodes before the installation of netweft; `None` if netweft was already installed.
    pub before: Option<Residue>,
}

type Check = (&'static str, fn(&mut Cluster) -> anyhow::Result<()>);

/// Which checks to run. Each value includes the checks of the values before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Checks {
    /// Connectivity, for every mode and pod interface.
    Basic,
    /// Invalid objects, failures, repairs, mode changes, and nodes that join and leave.
    Life,
    /// Checks that take long.
    Full,
}

macro_rules! checks {
    ($($module:ident :: $name:ident),* $(,)?) => {
        [$((stringify!($name), $module::$name as fn(&mut Cluster) -> anyhow::Result<()>)),*]
    };
}

/// The checks of [`Checks::Basic`].
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

/// Additional checks of mode underlay.
const UNDERLAY: &[Check] = &checks![
    bgp::underlay_blocks_are_routed_only_by_bgp,
    bgp::mesh_replacement_by_router_loses_no_packets,
    bgp::killed_bird_processes_lose_no_packets,
    bgp::bird_rollout_loses_no_packets,
    bgp::release_upgrade_keeps_bgp_sessions,
    privileges::bird_needs_each_of_its_privileges,
];

/// Additional checks of clusters with the udp relay.
const RELAY: &[Check] = &checks![
    relay::relay_rollout_loses_no_packets,
    privileges::relay_needs_each_of_its_privileges,
];

/// The checks that [`Checks::Life`] adds.
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

/// The checks that [`Checks::Full`] adds.
const FULL: &[Check] = &checks![
    modes::pods_of_all_modes_reach_each_other,
    pools::pool_requested_by_pod_is_drained_and_deleted,
    bandwidth::bandwidth_annotation_limits_pod_rate,
    addresses::hundred_deleted_pods_leave_no_state_on_nodes,
    other_kernel::nodes_with_other_kernel_run_pods,
    privileges::agent_needs_each_of_its_privileges,
    uninstall::uninstall_keeps_pods_and_leaves_nodes_clean,
];

/// Additional checks of a mode.
fn checks_of_mode(mode: LabMode) -> &'static [Check] {
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

/// Run the checks whose names contain `only`, and print each result. Returns the numbers of passed and failed checks.
#[must_use]
pub fn run(cluster: &mut Cluster, checks: Checks, only: &str) -> (usize, usize) {
    let (mut passed, mut failed) = (0, 0);
    let groups = [
        (Checks::Basic, BASIC),
        (Checks::Basic, checks_of_mode(cluster.mode)),
        (Checks::Life, LIFE),
        (Checks::Full, FULL),
    ];
    let selected = groups.iter().filter(|(group, _)| *group <= checks);
    let has_name = |(name, _): &&Check| name.contains(only);
    for (name, check) in selected.flat_map(|(_, list)| *list).filter(has_name) {
        let started = Instant::now();
        let outcome = check(cluster);
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({seconds:.1} s)");
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED ({seconds:.1} s)\n  {error:#}");
            }
        }
    }
    (passed, failed)
}

impl Cluster {
    /// The MTU of pods in bytes: the minimum of the MTUs that the agents report.
    fn pod_mtu(&self) -> anyhow::Result<u64> {
        let networks = get(&["nodenetworks"])?;
        let mtus = crate::kind::kubectl::items(&networks).map(|network| {
            network
                .pointer("/status/mtu")
                .and_then(serde_json::Value::as_u64)
        });
        mtus.min()
            .flatten()
            .context("no NodeNetwork reports an MTU")
    }
}
