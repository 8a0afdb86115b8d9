//! Lookup of peers by destination and by source address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nix::sys::socket::SockaddrStorage;

use netweft_udp_relay::config::TunnelConfig;

/// The peers of a tunnel and their blocks, sorted for lookups.
#[derive(Clone, Debug)]
pub struct Routes {
    port: u16,
    sources: Vec<IpAddr>,
    peers: Vec<SockaddrStorage>,
    v4: Vec<Table<u32>>,
    v6: Vec<Table<u128>>,
}

/// The blocks of one prefix length: sorted, for a binary search. Clusters have one or two lengths.
#[derive(Clone, Debug)]
struct Table<T> {
    mask: T,
    blocks: Vec<(T, u32)>,
}

/// Index of a peer in the configuration.
pub type PeerIndex = u32;

impl Routes {
    /// The routes of a configuration. If two peers have the same block, the first peer is used.
    pub fn new(config: &TunnelConfig) -> Self {
        let (mut v4, mut v6) = (BTreeMap::new(), BTreeMap::new());
        for (peer, index) in config.peers.iter().zip(0..) {
            for block in &peer.blocks {
                match block {
                    IpNet::V4(net) => {
                        let table = v4.entry(u32::from(net.netmask()));
                        add(table.or_default(), u32::from(net.network()), index);
                    }
                    IpNet::V6(net) => {
                        let table = v6.entry(u128::from(net.netmask()));
                        add(table.or_default(), u128::from(net.network()), index);
                    }
                }
            }
        }
        let sources: BTreeSet<IpAddr> = config.peers.iter().map(|peer| peer.address).collect();
        let socket_address = |address| SockaddrStorage::from(SocketAddr::new(address, config.port));
        Self {
            port: config.port,
            sources: sources.into_iter().collect(),
            peers: config
                .peers
                .iter()
                .map(|peer| socket_address(peer.address))
                .collect(),
            v4: tables(v4),
            v6: tables(v6),
        }
    }

    /// The peer with the longest prefix that contains the address.
    pub fn find(&self, destination: IpAddr) -> Option<PeerIndex> {
        match destination {
            IpAddr::V4(address) => search(&self.v4, u32::from(address)),
            IpAddr::V6(address) => search(&self.v6, u128::from(address)),
        }
    }

    /// The outer address and port of a peer.
    pub fn address(&self, peer: PeerIndex) -> Option<&SockaddrStorage> {
        self.peers.get(usize::try_from(peer).ok()?)
    }

    /// Whether a peer has this outer address.
    pub fn is_peer(&self, source: IpAddr) -> bool {
        self.sources.binary_search(&source).is_ok()
    }

    /// The source port of valid datagrams.
    pub const fn port(&self) -> u16 {
        self.port
    }
}

fn add<T: Ord>(table: &mut BTreeMap<T, PeerIndex>, network: T, peer: PeerIndex) {
    table.entry(network).or_insert(peer);
}

/// The tables, sorted by descending prefix length, which is the order of descending masks.
fn tables<T: Ord>(tables: BTreeMap<T, BTreeMap<T, PeerIndex>>) -> Vec<Table<T>> {
    let table = |(mask, blocks): (T, BTreeMap<T, PeerIndex>)| Table {
        mask,
        blocks: blocks.into_iter().collect(),
    };
    tables.into_iter().rev().map(table).collect()
}

fn search<T>(tables: &[Table<T>], address: T) -> Option<PeerIndex>
where
    T: Copy + Ord + std::ops::BitAnd<Output = T>,
{
    tables.iter().find_map(|table| {
        let network = address & table.mask;
        let found = table.blocks.binary_search_by_key(&network, |block| block.0);
        found
            .ok()
            .and_then(|at| table.blocks.get(at))
            .map(|block| block.1)
    })
}

#[cfg(test)]
mod tests {
    use netweft_udp_relay::config::PeerConfig;
    use proptest::prelude::*;

    use super::*;

    fn config(peers: &[(&str, &[&str])]) -> TunnelConfig {
        let peer = |(address, blocks): &(&str, &[&str])| PeerConfig {
            address: address.parse().unwrap(),
            blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
        };
        TunnelConfig {
            link: "nw-udp1".to_owned(),
            port: 8285,
            local: "192.0.2.1".parse().unwrap(),
            peers: peers.iter().map(peer).collect(),
        }
    }

    #[test]
    fn route_lookup_prefers_longest_prefix_of_same_family() {
        let routes = Routes::new(&config(&[
            ("192.0.2.2", &["10.0.0.0/8", "fd00::/64"]),
            ("192.0.2.3", &["10.1.0.0/26", "10.0.0.0/8", "::/0"]),
        ]));
        let find = |address: &str| routes.find(address.parse().unwrap());
        assert_eq!(find("10.1.0.63"), Some(1));
        assert_eq!(find("10.1.0.64"), Some(0));
        assert_eq!(find("10.9.9.9"), Some(0), "the first peer has the block");
        assert_eq!(find("11.0.0.0"), None);
        assert_eq!(find("fd00::1"), Some(0));
        assert_eq!(find("fd01::1"), Some(1));
        assert_eq!(
            find("::ffff:10.1.0.1"),
            Some(1),
            "an IPv4-mapped address is IPv6"
        );
    }

    #[test]
    fn is_peer_accepts_only_configured_peers() {
        let routes = Routes::new(&config(&[("192.0.2.3", &[]), ("192.0.2.2", &[])]));
        let is_peer = |address: &str| routes.is_peer(address.parse().unwrap());
        assert!(is_peer("192.0.2.2") && is_peer("192.0.2.3"));
        assert!(!is_peer("192.0.2.1") && !is_peer("::ffff:192.0.2.2"));
    }

    proptest! {
        #[test]
        fn route_lookup_matches_linear_search(
            blocks in prop::collection::vec((any::<[u8; 4]>(), 0u8..=32, 0usize..3), 0..12),
            address: [u8; 4],
        ) {
            // Few different addresses, so that blocks overlap.
            let few = |bytes: [u8; 4]| IpAddr::from(bytes.map(|byte| byte & 0x81));
            let mut config = config(&[("192.0.2.2", &[]), ("192.0.2.3", &[]), ("192.0.2.4", &[])]);
            for (network, length, peer) in blocks {
                config.peers[peer].blocks.push(IpNet::new(few(network), length).unwrap());
            }
            let longest_match = |(index, peer): (usize, &PeerConfig)| {
                let matching = peer.blocks.iter().filter(|block| block.contains(&few(address)));
                matching.map(IpNet::prefix_len).max().map(|longest| (longest, std::cmp::Reverse(index)))
            };
            let expected = config.peers.iter().enumerate().filter_map(longest_match).max();
            let expected = expected.map(|(_, index)| index.0 as u32);
            prop_assert_eq!(Routes::new(&config).find(few(address)), expected);
        }
    }
}
