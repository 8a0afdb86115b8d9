//! What this node may hand out: `node.json`, written by the agent after its first sync of this boot, read by the plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netweft_netstate::model::{LinkName, Mac};
use serde::{Deserialize, Serialize};

use crate::block;
use netweft_common::atomic_file;

pub use netweft_common::PodInterface;

/// Name of the file in the shared directory.
pub const FILE: &str = "node.json";
/// The version of the format that this code writes and reads. Fields can be added without a new one.
pub const VERSION: u32 = 1;

/// The contents of `node.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// Version of the format.
    pub version: u32,
    /// Pools that this node's pods get addresses from, the preferred first.
    pub pools: Vec<PoolConfig>,
    /// Blocks of this node from which no pod gets an address any more; some may still have one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withdrawn: Vec<IpNet>,
    /// The namespaces there are, where a pool is for some of them only; `None` where none is. A pod of another must wait: nobody
    /// knows yet which pool it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<BTreeSet<String>>,
}

/// A pool's share on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolConfig {
    /// Name of the pool.
    pub name: String,
    /// Its range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<IpNet>,
    /// How pods are wired.
    pub pod_interface: PodInterface,
    /// The bridge that pods are attached to, where `pod_interface` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BridgeConfig>,
    /// MTU of pod links in bytes.
    pub mtu: u32,
    /// Blocks of this node, of one family, in order of use. Empty while the node has none of this pool.
    pub blocks: Vec<IpNet>,
    /// Addresses and ranges that no pod gets.
    #[serde(default)]
    pub reserved: Vec<IpNet>,
    /// Namespaces whose pods get addresses from here; `None` means all.
    #[serde(default)]
    pub namespaces: Option<BTreeSet<String>>,
    /// Whether to hand out no new address.
    #[serde(default)]
    pub disabled: bool,
}

/// The bridge that the agent keeps for pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeConfig {
    /// Its name.
    pub link: LinkName,
    /// Its Ethernet address, that of every gateway on it.
    pub mac: Mac,
    /// The bridge's own address in each block, the gateway of the block's pods.
    pub gateways: BTreeMap<IpNet, IpAddr>,
}

/// Why `node.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeConfigError {
    /// There is none.
    #[error(
        "netweft-agent has not finished its first sync on this node; see its log and the NodeNetwork of this node"
    )]
    Missing,
    /// It cannot be read.
    #[error("read {FILE}")]
    Io(#[source] io::Error),
    /// It does not parse.
    #[error(
        "parse {FILE}; netweft-agent writes it anew within a minute, and its log says if it cannot"
    )]
    Malformed(#[source] serde_json::Error),
    /// A newer agent wrote it.
    #[error(
        "{FILE} has version {0}, this plugin reads {VERSION}; the agent is about to install a newer plugin"
    )]
    Version(u32),
}

impl PoolConfig {
    /// Whether it has addresses of IPv4, or of IPv6.
    #[must_use]
    pub fn is_of(&self, ipv4: bool) -> bool {
        let mut nets = self.cidr.iter().chain(&self.blocks);
        nets.any(|net| net.addr().is_ipv4() == ipv4)
    }
}

impl NodeConfig {
    /// The tunnel address of each block.
    pub fn tunnel_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let blocks = self.pools.iter().flat_map(|pool| &pool.blocks);
        blocks.copied().filter_map(block::tunnel_address)
    }

    /// The bridge's address in each block.
    pub fn gateways(&self) -> impl Iterator<Item = (IpNet, IpAddr)> {
        let bridges = self.pools.iter().filter_map(|pool| pool.bridge.as_ref());
        bridges.flat_map(|bridge| {
            bridge
                .gateways
                .iter()
                .map(|(block, gateway)| (*block, *gateway))
        })
    }

    /// Reads `node.json` in `dir`.
    ///
    /// # Errors
    /// [`NodeConfigError::Missing`] before the agent's first sync, else what is wrong with the file.
    pub fn read(dir: &Path) -> Result<Self, NodeConfigError> {
        let bytes = match fs::read(dir.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NodeConfigError::Missing);
            }
            read => read.map_err(NodeConfigError::Io)?,
        };
        let version: Version =
            serde_json::from_slice(&bytes).map_err(NodeConfigError::Malformed)?;
        if version.version != VERSION {
            return Err(NodeConfigError::Version(version.version));
        }
        serde_json::from_slice(&bytes).map_err(NodeConfigError::Malformed)
    }

    /// Writes `node.json` in `dir`, atomically and durably, unless it has these contents already. Says whether it wrote.
    ///
    /// # Errors
    /// When a file cannot be written; the old contents are then still in place.
    pub fn write(&self, dir: &Path) -> io::Result<bool> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        let path = dir.join(FILE);
        if fs::read(&path).is_ok_and(|found| found == bytes) {
            return Ok(false);
        }
        atomic_file::replace(&path, &bytes).map(|()| true)
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NodeConfig {
        let text = r#"{"version":1,"later":true,"pools":[{"name":"a","podInterface":"routed","mtu":1450,
            "blocks":["10.244.0.0/26"],"reserved":["10.244.0.1/32"],"namespaces":null,"disabled":false,"later":[]},
            {"name":"b","podInterface":"bridge","mtu":1450,"blocks":["10.99.0.0/26"],
            "bridge":{"link":"nw-br0","mac":"02:00:00:00:00:01","gateways":{"10.99.0.0/26":"10.99.0.1"}}}]}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn node_config_reads_back_and_is_written_only_on_change() {
        let dir = tempfile::tempdir().unwrap();
        assert!(config().write(dir.path()).unwrap());
        assert!(
            !config().write(dir.path()).unwrap(),
            "same contents, no write"
        );
        assert_eq!(NodeConfig::read(dir.path()).unwrap(), config());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn missing_newer_and_malformed_node_config_have_own_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            NodeConfig::read(dir.path()),
            Err(NodeConfigError::Missing)
        ));
        fs::write(dir.path().join(FILE), r#"{"version":2,"pools":{}}"#).unwrap();
        assert!(matches!(
            NodeConfig::read(dir.path()),
            Err(NodeConfigError::Version(2))
        ));
        fs::write(dir.path().join(FILE), "").unwrap();
        assert!(matches!(
            NodeConfig::read(dir.path()),
            Err(NodeConfigError::Malformed(_))
        ));
    }
}
