//! What happens in a lab, and in which modes it can.

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

/// What happens in a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Pods and nodes ping each other and a host outside; the kernel is compared with docs/kernel.
    Connectivity,
    /// Two racks, their routers and two spines (`--routers`); an uplink fails.
    Fabric,
    /// BIRDs and agents end and come back.
    BgpRestarts,
    /// Two BIRDs recover at the same time.
    BgpRecoveries,
    /// The mesh gives way to route reflectors, and these to a router.
    BgpEdits,
    /// Peers are misconfigured, silent or announce wrong routes.
    BgpForeignPeers,
    /// 50 nodes in a mesh.
    ScaleMesh,
    /// 200 nodes behind two route reflectors.
    ScaleReflectors,
    /// A node gets further blocks and gives them back.
    Growth,
    /// The mode changes under load, from each of `--mode` to another (`--tour`).
    ModeChanges,
    /// Another program changes what is netweft's on a node.
    Drift,
    /// Agents are killed and stopped; nodes join, leave and boot.
    AgentFailures,
    /// Pods and hosts forge sources, encapsulated packets and router advertisements.
    Abuse,
    /// A node gets another MTU, another uplink, another address, another time.
    Reconfiguration,
}

/// What runs a scenario.
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
    /// The modes that it can run in; the first is the default.
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

    /// The modes that it runs in where none are asked for.
    #[must_use]
    pub fn default_modes(self) -> Vec<LabMode> {
        match self {
            // Those that every kernel has.
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

    /// What runs it.
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

    /// The modes of `asked` to run in, or the default ones.
    ///
    /// # Errors
    /// It cannot run in one of `asked`.
    pub fn in_modes(self, asked: &[LabMode]) -> anyhow::Result<Vec<LabMode>> {
        let possible = self.modes();
        if let Some(mode) = asked.iter().find(|mode| !possible.contains(mode)) {
            let possible: Vec<String> = possible.iter().map(ToString::to_string).collect();
            anyhow::bail!(
                "scenario {self} cannot run in mode {mode}: use {}, or leave out --mode",
                possible.join(", ")
            );
        }
        Ok(match asked {
            [] => self.default_modes(),
            _ => asked.to_vec(),
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
