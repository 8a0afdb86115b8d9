//! Validation of objects of users.

mod conflicts;
mod ip_pool_spec;
mod network_mode_spec;

use crate::plan::validate::*;
use crate::testing::{Cluster, mode, pool};

fn checked_mode(spec: &str) -> Result<Mode, Verdict> {
    network_mode::check("m", &mode("m", spec).spec)
}

fn checked_pool(cidr: &str, more: &str) -> Result<Pool, Verdict> {
    ip_pool::check("p", &pool("p", cidr, more).spec, false)
}

fn check_all(cluster: &Cluster) -> (Modes, Pools) {
    let cluster_state = cluster.cluster_state();
    let modes = modes(&cluster_state);
    let pools = pools(&cluster_state, &modes);
    (modes, pools)
}

fn refusal<T: fmt::Debug>(result: &Result<T, Verdict>) -> String {
    let why = result.as_ref().unwrap_err();
    format!("{}: {}", why.reason.as_str(), why.message)
}
