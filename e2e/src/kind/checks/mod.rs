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
    traffic::packets_as_large_as_the_mtu_pass,
    traffic::the_server_sees_the_pods_own_address,
    traffic::the_outside_sees_the_nodes_address,
    traffic::a_pods_containers_share_one_stack,
    services::dns_answers,
    services::a_cluster_ip_answers,
    services::a_node_port_answers,
    services::a_host_port_answers,
];

/// What a cluster of mode underlay has to pass besides.
const UNDERLAY: &[Check] = &checks![
    bgp::blocks_are_reached_by_bgp_alone,
    bgp::a_router_takes_the_place_of_the_mesh,
    bgp::killed_birds_lose_nothing,
    bgp::a_rollout_of_bird_loses_nothing,
    bgp::a_release_leaves_every_session_alone,
    privileges::every_privilege_of_bird_is_needed,
];

/// What a cluster with the udp relay has to pass besides.
const RELAY: &[Check] = &checks![
    relay::a_rollout_of_the_relay_loses_nothing,
    privileges::every_privilege_of_the_relay_is_needed,
];

/// What happens in the life of a cluster.
const LIFE: &[Check] = &checks![
    modes::modes_work_side_by_side,
    objects::bad_objects_are_refused_in_words,
    objects::what_is_not_supported_says_so,
    addresses::an_address_is_freed_when_its_pod_goes,
    pools::a_pod_asks_for_a_pool_which_is_drained_and_deleted,
    nodes::a_node_works_without_its_agent,
    drift::what_others_change_is_put_right_and_told,
    change::a_change_of_the_mode_loses_nothing,
    faults::killed_agents_lose_nothing,
    faults::killed_operators_lose_nothing,
    faults::a_dead_api_server_loses_nothing,
    nodes::a_new_node_joins_and_a_deleted_one_is_forgotten,
];

/// What takes long.
const FULL: &[Check] = &checks![
    bandwidth::a_pod_that_asks_is_limited_in_its_rate,
    addresses::a_hundred_pods_come_and_go_and_nothing_is_left,
    other_kernel::nodes_on_another_kernel_carry_pods,
    privileges::every_privilege_of_the_agent_is_needed,
    uninstall::what_is_uninstalled_leaves_pods_alone_and_nodes_clean,
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
