//! `node.json`: the pools and blocks of this node. The agent writes the file after its first sync of this boot, and the
//! plugin reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netweft_common::atomic_file;
use netweft_netstate::model::{LinkName, Mac};
use serde::{Deserialize, Serialize};

use crate::block;
use crate::error::io_remedy;

pub use netweft_common::PodInterface;

/// Name of the file in the shared directory.
pub const FILE: &str = "node.json";
/// The version of the format that this code writes and reads. New fields need no new version.
pub const VERSION: u32 = 1;

/// The contents of `node.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// Version of the format.
    pub version: u32,
    /// Pools that give addresses to pods of this node, the preferred first.
    pub pools: Vec<PoolConfig>,
    /// Blocks of this node that give no new addresses. Pods may still have addresses of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withdrawn: Vec<IpNet>,
    /// All namespaces, if a pool selects namespaces; else `None`. ADD fails for a pod of another namespace, because its pools
    /// are not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<BTreeSet<String>>,
}

/// A pool, with its blocks on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolConfig {
    /// Name of the pool.
    pub name: String,
    /// Range of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<IpNet>,
    /// How pods are connected to the node.
    pub pod_interface: PodInterface,
    /// The bridge for pods, if `pod_interface` is [`PodInterface::Bridge`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BridgeConfig>,
    /// MTU of pod links in bytes.
    pub mtu: u32,
    /// Blocks of this node, of one family, in order of use. Empty while the node has none of this pool.
    pub blocks: Vec<IpNet>,
    /// Addresses and ranges that no pod gets.
    #[serde(default)]
    pub reserved: Vec<IpNet>,
    /// Namespaces whose pods get addresses of this pool; `None`: all.
    #[serde(default)]
    pub namespaces: Option<BTreeSet<String>>,
    /// Whether the pool gives no new addresses.
    #[serde(default)]
    pub disabled: bool,
}

/// The agent's bridge for pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeConfig {
    /// Name of the bridge.
    pub link: LinkName,
    /// Ethernet address of the bridge, which is that of every gateway on it.
    pub mac: Mac,
    /// The bridge's own address in each block, the gateway of the block's pods.
    pub gateways: BTreeMap<IpNet, IpAddr>,
}

/// Why `node.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeConfigError {
    /// The file does not exist.
    #[error(
        "netweft-agent has not finished its first sync on this node, so {FILE} does not exist: the log of netweft-agent and \
         the conditions of the NodeNetwork of this node have the reason"
    )]
    Missing,
    /// The file cannot be read.
    #[error("read {FILE}{}", io_remedy(.0))]
    Io(#[source] io::Error),
    /// The file cannot be parsed.
    #[error(
        "parse {FILE}: netweft-agent replaces the file within a minute; the log of netweft-agent has the reason if this \
         error persists"
    )]
    Malformed(#[source] serde_json::Error),
    /// The file is of a newer agent.
    #[error(
        "{FILE} has version {0}, but this plugin reads version {VERSION}: netweft-agent installs a newer plugin at its start; \
         restart netweft-agent if this error persists"
    )]
    Version(u32),
}

impl PoolConfig {
    /// Whether the pool has addresses of IPv4 (`ipv4`), or of IPv6.
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
    /// [`NodeConfigError::Missing`] before the agent's first sync, else the fault of the file.
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

    /// Writes `node.json` in `dir`, atomically and durably, unless it has these contents. Returns whether it was written.
    ///
    /// # Errors
    /// When the file cannot be written; it then still has the old contents.
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
        let text = r#"{"version":1,"newer":true,"pools":[{"name":"a","podInterface":"routed","mtu":1450,
            "blocks":["10.244.0.0/26"],"reserved":["10.244.0.1/32"],"namespaces":null,"disabled":false,"newer":[]},
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
            "no temporary file is left"
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
