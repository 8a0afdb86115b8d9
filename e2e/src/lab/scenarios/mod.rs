//! The scenarios of the lab, and the modes that each supports.

pub mod abuse;
pub mod agent_failures;
pub mod bgp;
pub mod drift;
pub mod fabric;
pub mod growth;
pub mod mode_changes;
mod mtu;
pub mod reconfiguration;
pub mod scale;

use std::fmt;

use clap::ValueEnum;

use crate::lab::LabMode;

/// A scenario, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Pods and nodes ping each other and an external host; the kernel state is compared with docs/kernel.
    Connectivity,
    /// Two racks, their routers and two spines (`--routers`); an uplink fails.
    Fabric,
    /// BIRD processes and agents stop and restart.
    BgpRestarts,
    /// Two BIRD processes restart at the same time.
    BgpRecoveries,
    /// Route reflectors replace the mesh, then a router replaces the reflectors.
    BgpEdits,
    /// Peers are misconfigured, unreachable or announce wrong routes.
    BgpForeignPeers,
    /// 50 nodes in a mesh.
    ScaleMesh,
    /// 200 nodes behind two route reflectors.
    ScaleReflectors,
    /// A node receives further blocks and releases them.
    Growth,
    /// The mode changes under load, between the modes of `--mode` in the order of `--tour`.
    ModeChanges,
    /// Another program changes the agent's kernel objects and files on a node.
    Drift,
    /// Agents are killed and suspended; nodes join, leave and reboot.
    AgentFailures,
    /// Pods and hosts forge sources, encapsulated packets and router advertisements.
    Abuse,
    /// The MTU, uplink, address and clock of a node change.
    Reconfiguration,
}

/// The kind of lab that a scenario runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Three nodes in one mode.
    Nodes,
    /// Three nodes that change from mode to mode.
    ModeChanges,
    /// Racks and routers.
    Fabric,
    /// Three nodes in a BGP mesh.
    Bgp(bgp::Scenario),
    /// Many nodes.
    Scale(scale::Topology),
}

impl Scenario {
    /// The supported modes; the first is the default.
    #[must_use]
    pub fn modes(self) -> &'static [LabMode] {
        match self {
            Self::Connectivity | Self::ModeChanges => LabMode::value_variants(),
            Self::Abuse => &[
                LabMode::Vxlan,
                LabMode::Udp,
                LabMode::HostGw,
                LabMode::Underlay,
            ],
            Self::Growth | Self::Drift | Self::AgentFailures | Self::Reconfiguration => {
                &[LabMode::Vxlan]
            }
            Self::Fabric
            | Self::BgpRestarts
            | Self::BgpRecoveries
            | Self::BgpEdits
            | Self::BgpForeignPeers
            | Self::ScaleMesh
            | Self::ScaleReflectors => &[LabMode::Underlay],
        }
    }

    /// The modes of a run without `--mode`.
    #[must_use]
    pub fn default_modes(self) -> Vec<LabMode> {
        match self {
            // Kernels without the ipip module support these.
            Self::ModeChanges => vec![
                LabMode::Vxlan,
                LabMode::Udp,
                LabMode::HostGw,
                LabMode::VxlanCrossSubnet,
                LabMode::Underlay,
                LabMode::UdpCrossSubnet,
            ],
            _ => self.modes().iter().copied().take(1).collect(),
        }
    }

    /// The kind of lab.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Connectivity
            | Self::Abuse
            | Self::Growth
            | Self::Drift
            | Self::AgentFailures
            | Self::Reconfiguration => Kind::Nodes,
            Self::ModeChanges => Kind::ModeChanges,
            Self::Fabric => Kind::Fabric,
            Self::BgpRestarts => Kind::Bgp(bgp::Scenario::Restarts),
            Self::BgpRecoveries => Kind::Bgp(bgp::Scenario::Recoveries),
            Self::BgpEdits => Kind::Bgp(bgp::Scenario::Edits),
            Self::BgpForeignPeers => Kind::Bgp(bgp::Scenario::ForeignPeers),
            Self::ScaleMesh => Kind::Scale(scale::Topology::Mesh),
            Self::ScaleReflectors => Kind::Scale(scale::Topology::Reflectors),
        }
    }

    /// `requested`, or the default modes if it is empty.
    ///
    /// # Errors
    /// The scenario does not support one of the requested modes.
    pub fn in_modes(self, requested: &[LabMode]) -> anyhow::Result<Vec<LabMode>> {
        let supported = self.modes();
        if let Some(mode) = requested.iter().find(|mode| !supported.contains(mode)) {
            let supported: Vec<String> = supported.iter().map(ToString::to_string).collect();
            anyhow::bail!(
                "scenario {self} cannot run in mode {mode}: use {}, or leave out --mode",
                supported.join(", ")
            );
        }
        Ok(match requested {
            [] => self.default_modes(),
            _ => requested.to_vec(),
        })
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenario_in_unsupported_mode_is_refused() {
        let modes = Scenario::Drift.in_modes(&[]).unwrap();
        assert_eq!(modes, [LabMode::Vxlan]);
        let refusal = Scenario::BgpEdits.in_modes(&[LabMode::Vxlan]).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "scenario bgp-edits cannot run in mode vxlan: use underlay, or leave out --mode"
        );
    }

    #[test]
    fn scenario_default_modes_are_supported() {
        for scenario in Scenario::value_variants() {
            let modes = scenario.default_modes();
            assert!(!modes.is_empty());
            assert_eq!(scenario.in_modes(&modes).unwrap(), modes);
        }
    }
}
