//! Scenarios on a real cluster: kind's nodes, real kubelets, the chart as a user installs it.
//!
//! Everything goes through `kubectl`, `helm` and `docker` as a user would use them; they are expected on PATH and set up
//! (`e2e/cluster/cluster.sh exec` does that).

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
