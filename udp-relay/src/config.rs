//! The configuration of the relay: `udp.json`, which the agent writes.
//!
//! ```text
//! {"version":1,"tunnels":[{"link":"nw-udp8285","port":8285,"local":"192.0.2.1",
//!   "peers":[{"address":"192.0.2.2","blocks":["10.244.1.0/26","fd00:10:244::40/122"]}]}]}
//! ```
//!
//! The relay creates each `link` as a TUN link, and removes all other TUN links whose names begin with [`UDP_PREFIX`]. The agent
//! sets MTU, state, addresses and routes of the links. A missing file is equivalent to a file without tunnels.

use netweft_common::atomic_file;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netweft_common::link_names::UDP_PREFIX;
use serde::{Deserialize, Serialize};

/// Name of the file in the shared directory.
pub const FILE: &str = "udp.json";
/// The version of the format that this code writes and reads. A new field needs no new version.
pub const VERSION: u32 = 1;
/// Bytes of the outer headers in IPv4: 20 bytes IP and 8 bytes UDP.
pub const OVERHEAD_V4: u32 = 28;
/// Bytes of the outer headers in IPv6: 40 bytes IP and 8 bytes UDP.
pub const OVERHEAD_V6: u32 = 48;

/// The contents of `udp.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayConfig {
    /// Version of the format.
    pub version: u32,
    /// The tunnels, one for each port.
    pub tunnels: Vec<TunnelConfig>,
}

/// A TUN link and the nodes behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelConfig {
    /// Name of the link, which begins with [`UDP_PREFIX`].
    pub link: String,
    /// UDP port of both ends. Datagrams have this source port, too.
    pub port: u16,
    /// The outer address of this node, from which datagrams are sent and at which they are received.
    pub local: IpAddr,
    /// The other nodes. Their addresses have the family of `local`.
    #[serde(default)]
    pub peers: Vec<PeerConfig>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerConfig {
    /// The outer address of the peer. Datagrams from other addresses are dropped.
    pub address: IpAddr,
    /// The destinations that are sent to this peer, of both families. The longest matching prefix of all peers is used.
    #[serde(default)]
    pub blocks: Vec<IpNet>,
}

/// Why `udp.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {FILE}")]
    Io(#[source] io::Error),
    /// The file cannot be parsed.
    #[error("parse {FILE}")]
    Malformed(#[source] serde_json::Error),
    /// The file has another version, for example because a newer agent has written it.
    #[error("{FILE} has version {0}, this relay reads {VERSION}; the relay has to be updated")]
    Version(u32),
    /// A link has no valid name, or a name without [`UDP_PREFIX`].
    #[error(
        "{FILE} names the link {0:?}: names are {UDP_PREFIX} and letters, digits, dashes or dots, 15 bytes at most"
    )]
    LinkName(String),
    /// Two tunnels have the same link, or the same local address and port.
    #[error("{FILE} has two tunnels for {0}")]
    Duplicate(String),
    /// A peer has an address of another family than the local address of the tunnel.
    #[error(
        "{FILE}: tunnel {link} has the local address {local} and the peer {peer}, which is of the other family"
    )]
    Family {
        /// Name of the link.
        link: String,
        /// The local address.
        local: IpAddr,
        /// The address of the peer.
        peer: IpAddr,
    },
}

impl Default for RelayConfig {
    /// No tunnels.
    fn default() -> Self {
        Self {
            version: VERSION,
            tunnels: Vec::new(),
        }
    }
}

impl RelayConfig {
    /// Reads and checks `udp.json` in `dir`. A missing file means no tunnels.
    ///
    /// # Errors
    /// The file cannot be read or parsed, has another version, or is invalid (see [`ConfigError`]).
    pub fn read(dir: &Path) -> Result<Self, ConfigError> {
        let bytes = match fs::read(dir.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read.map_err(ConfigError::Io)?,
        };
        let version: Version = serde_json::from_slice(&bytes).map_err(ConfigError::Malformed)?;
        if version.version != VERSION {
            return Err(ConfigError::Version(version.version));
        }
        let config: Self = serde_json::from_slice(&bytes).map_err(ConfigError::Malformed)?;
        config.check().map(|()| config)
    }

    /// Writes `udp.json` in `dir`, atomically and durably, unless the file has the same contents. Returns whether the file was
    /// written.
    ///
    /// # Errors
    /// A file cannot be written. The previous contents remain.
    pub fn write(&self, dir: &Path) -> io::Result<bool> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        let path = dir.join(FILE);
        if fs::read(&path).is_ok_and(|found| found == bytes) {
            return Ok(false);
        }
        atomic_file::replace(&path, &bytes).map(|()| true)
    }

    /// Removes `udp.json` from `dir`, so that the relay removes its links. Returns whether the file existed.
    ///
    /// # Errors
    /// The file exists and cannot be removed.
    pub fn remove(dir: &Path) -> io::Result<bool> {
        let path = dir.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed
                .and_then(|()| atomic_file::sync_dir(&path))
                .map(|()| true),
        }
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// A link name is invalid, two tunnels have the same link or socket, or a peer is of the other family.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (mut links, mut sockets) = (BTreeSet::new(), BTreeSet::new());
        for tunnel in &self.tunnels {
            tunnel.check()?;
            if !links.insert(&tunnel.link) {
                return Err(ConfigError::Duplicate(tunnel.link.clone()));
            }
            if !sockets.insert((tunnel.local, tunnel.port)) {
                return Err(ConfigError::Duplicate(format!(
                    "{} port {}",
                    tunnel.local, tunnel.port
                )));
            }
        }
        Ok(())
    }
}

impl TunnelConfig {
    fn check(&self) -> Result<(), ConfigError> {
        if !is_link_name(&self.link) {
            return Err(ConfigError::LinkName(self.link.clone()));
        }
        let other_family = |peer: &&PeerConfig| peer.address.is_ipv4() != self.local.is_ipv4();
        match self.peers.iter().find(other_family) {
            None => Ok(()),
            Some(peer) => Err(ConfigError::Family {
                link: self.link.clone(),
                local: self.local,
                peer: peer.address,
            }),
        }
    }
}

/// The kernel allows more characters (`dev_valid_name`), and replaces `%d` by a number.
fn is_link_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    name.starts_with(UDP_PREFIX) && name.len() <= 15 && name.bytes().all(allowed)
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"version":1,"later":true,"tunnels":[{"link":"nw-udp8285","port":8285,"local":"192.0.2.1",
        "peers":[{"address":"192.0.2.2","blocks":["10.244.1.0/26","fd00:10:244::40/122"]}]}]}"#;

    fn config() -> RelayConfig {
        serde_json::from_str(TEXT).unwrap()
    }

    fn read(text: &str) -> Result<RelayConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), text).unwrap();
        RelayConfig::read(dir.path())
    }

    #[test]
    fn relay_config_reads_back_and_is_written_only_on_change() {
        let dir = tempfile::tempdir().unwrap();
        assert!(config().write(dir.path()).unwrap());
        assert!(
            !config().write(dir.path()).unwrap(),
            "same contents, no write"
        );
        assert_eq!(RelayConfig::read(dir.path()).unwrap(), config());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file remains"
        );
    }

    #[test]
    fn missing_relay_config_means_no_tunnels() {
        let dir = tempfile::tempdir().unwrap();
        config().write(dir.path()).unwrap();
        assert!(RelayConfig::remove(dir.path()).unwrap());
        assert!(!RelayConfig::remove(dir.path()).unwrap());
        assert_eq!(
            RelayConfig::read(dir.path()).unwrap(),
            RelayConfig::default()
        );
    }

    #[test]
    fn newer_and_malformed_relay_config_have_own_errors() {
        assert!(matches!(
            read(r#"{"version":2,"tunnels":{}}"#),
            Err(ConfigError::Version(2))
        ));
        assert!(matches!(read(""), Err(ConfigError::Malformed(_))));
    }

    #[test]
    fn relay_config_with_foreign_link_name_is_refused() {
        for name in [
            "eth0",
            "nw-vx4096",
            "nw-udp%d",
            "nw-udp/../x",
            "nw-udp1234567890",
        ] {
            let refused = read(&TEXT.replace("nw-udp8285", name));
            assert!(
                matches!(&refused, Err(ConfigError::LinkName(named)) if named == name),
                "{name}: {refused:?}"
            );
        }
    }

    #[test]
    fn duplicate_tunnel_or_mixed_family_is_refused() {
        let mut two = config();
        two.tunnels.push(two.tunnels[0].clone());
        assert!(matches!(two.check(), Err(ConfigError::Duplicate(link)) if link == "nw-udp8285"));
        two.tunnels[1].link = "nw-udp2".to_owned();
        assert!(matches!(two.check(), Err(ConfigError::Duplicate(_))));
        two.tunnels[1].port = 2;
        two.check().unwrap();
        two.tunnels[1].local = "2001:db8::1".parse().unwrap();
        assert!(matches!(two.check(), Err(ConfigError::Family { .. })));
    }
}
