//! Checks of a kind cluster with netweft, installed from the chart.
//!
//! The checks use `kubectl`, `helm` and `docker`, which must be in PATH and configured for the cluster.
//! `e2e/cluster/cluster.sh exec` provides both.

mod checks;
mod host;
mod install;
mod kubectl;
mod meter;
mod probes;
mod residue;
mod upgrade;

pub use crate::kind::checks::{Checks, Cluster, run};
pub use crate::kind::install::{Install, install, is_installed};
pub use crate::kind::probes::Probes;
pub use crate::kind::residue::Residue;
pub use crate::kind::upgrade::upgrade;
