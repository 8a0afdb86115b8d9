//! Scenarios on a real cluster: kind's nodes, real kubelets, the chart as a user installs it.
//!
//! Everything goes through `kubectl`, `helm` and `docker` as a user would use them; they are expected on PATH and set up
//! (`e2e/cluster/cluster.sh exec` does that).

mod checks;
mod install;
mod kubectl;
mod machine;
mod meter;
mod probes;
mod residue;
mod upgrade;

pub use checks::{Checks, Cluster, run};
pub use install::{Install, install, is_installed};
pub use probes::Probes;
pub use residue::Residue;
pub use upgrade::upgrade;
