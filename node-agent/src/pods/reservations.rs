//! Which of the node's own addresses no ADD can give to a pod any more.
//!
//! The plugin knows the tunnel address of a block itself. It learns of other addresses from the reserved ranges of `node.json`,
//! and so does a plugin of an earlier version, which may run while the node is updated, of all. An ADD reads the file and writes
//! its record under one lock. So an address is settled when `node.json` reserves it and the lock was had since: an ADD that has
//! read an earlier file has its record then.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netweft_cni::node::NodeConfig;

/// How long an agent that starts waits for an ADD under way.
const FIRST: Duration = Duration::from_secs(1);

/// The ranges that no ADD gives addresses of. Without a `node.json` no ADD gives any address.
#[derive(Clone, Debug, Default)]
pub struct Reservations {
    /// Those of the present `node.json`, if there is one.
    written: Option<BTreeSet<IpNet>>,
    /// What `written` was when the lock was had last; `None` before the first time.
    settled: Option<Option<BTreeSet<IpNet>>>,
}

/// Whether an address of the node's own can become a pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// An ADD may give it to a pod.
    Open,
    /// It is reserved, but an ADD under way may not have read of it.
    Reserved,
    /// No ADD gives it to a pod.
    Settled,
}

impl Reservations {
    /// Looks again, before the records are read. `config` is the present `node.json`; `locked` waits at most as long as it is told
    /// (`usual`, but longer the first time) for the plugin's lock, lets go of it, and says whether it was had.
    pub fn observe(
        &mut self,
        config: Option<&NodeConfig>,
        usual: Duration,
        locked: impl FnOnce(Duration) -> bool,
    ) {
        self.written = config.map(|config| {
            let pools = config.pools.iter();
            pools.flat_map(|pool| pool.reserved.clone()).collect()
        });
        let patience = self.settled.as_ref().map_or(FIRST, |_| usual);
        if self.settled.as_ref() != Some(&self.written) && locked(patience) {
            self.settled = Some(self.written.clone());
        }
    }

    /// Whether the lock was had since the agent started.
    #[cfg(test)]
    pub fn begun(&self) -> bool {
        self.settled.is_some()
    }

    /// What is known of an address.
    #[must_use]
    pub fn hold(&self, address: IpAddr) -> Hold {
        let keeps = |written: &Option<BTreeSet<IpNet>>| {
            let ranges = written.as_ref();
            ranges.is_none_or(|ranges| ranges.iter().any(|range| range.contains(&address)))
        };
        match (
            keeps(&self.written),
            self.settled.as_ref().is_some_and(keeps),
        ) {
            (false, _) => Hold::Open,
            (true, false) => Hold::Reserved,
            (true, true) => Hold::Settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use netweft_cni::node::{PodInterface, PoolConfig, VERSION};

    use super::*;

    fn reserving(ranges: &[&str]) -> NodeConfig {
        let pool = PoolConfig {
            name: "p".into(),
            cidr: None,
            pod_interface: PodInterface::Routed,
            bridge: None,
            mtu: 1400,
            blocks: vec!["10.0.0.0/26".parse().unwrap()],
            reserved: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            namespaces: None,
            disabled: false,
        };
        NodeConfig {
            version: VERSION,
            pools: vec![pool],
            withdrawn: vec![],
            namespaces: None,
        }
    }

    /// What is known of 10.0.0.1 after these looks: what is reserved, if there is a file, and whether the lock is had.
    fn hold(looks: &[(Option<&[&str]>, bool)]) -> Hold {
        let mut reservations = Reservations::default();
        for (reserved, locked) in looks {
            let config = reserved.map(reserving);
            reservations.observe(config.as_ref(), Duration::ZERO, |_| *locked);
        }
        reservations.hold("10.0.0.1".parse().unwrap())
    }

    #[test]
    fn address_is_settled_once_reserved_and_lock_was_held() {
        const ONE: &[&str] = &["10.0.0.1/32"];
        const OTHER: &[&str] = &["10.0.0.1/32", "10.0.0.9/32"];
        assert_eq!(hold(&[(Some(&[]), true)]), Hold::Open);
        assert_eq!(hold(&[(Some(ONE), false)]), Hold::Reserved);
        assert_eq!(hold(&[(Some(ONE), true)]), Hold::Settled);
        assert_eq!(
            hold(&[(Some(&[]), true), (Some(ONE), false)]),
            Hold::Reserved
        );
        assert_eq!(
            hold(&[(Some(ONE), true), (Some(OTHER), false)]),
            Hold::Settled
        );
        assert_eq!(hold(&[(Some(ONE), true), (Some(&[]), true)]), Hold::Open);
    }

    #[test]
    fn settled_address_persists_without_node_config() {
        const ONE: &[&str] = &["10.0.0.1/32"];
        assert_eq!(hold(&[(None, true)]), Hold::Settled);
        assert_eq!(hold(&[(None, false)]), Hold::Reserved);
        for locked in [true, false] {
            assert_eq!(hold(&[(Some(ONE), true), (None, locked)]), Hold::Settled);
            assert_eq!(hold(&[(None, true), (Some(ONE), locked)]), Hold::Settled);
        }
    }
}
