//! Reservations of the node's own addresses: which of them an ADD cannot assign to a pod any more.
//!
//! The plugin excludes the tunnel address of a block itself. `node.json` has the reserved ranges of other addresses, and of all
//! addresses for a plugin of an earlier version, which may run during an update. An ADD reads the file and writes its record under
//! one lock. A reservation is therefore effective when `node.json` has it and the lock was acquired afterwards: an ADD that has read
//! an earlier file has its record by then.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netweft_cni::node::NodeConfig;

/// How long a starting agent waits for the lock.
const FIRST_LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// The ranges from which no ADD assigns addresses. Without a `node.json` no ADD assigns any address.
#[derive(Clone, Debug, Default)]
pub struct Reservations {
    /// The reserved ranges of the present `node.json`; `None` without the file.
    written: Option<BTreeSet<IpNet>>,
    /// The value of `written` when the lock was acquired last; `None` before the first time.
    effective: Option<Option<BTreeSet<IpNet>>>,
}

/// The reservation of one of the node's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// An ADD may assign the address to a pod.
    Missing,
    /// The address is reserved, but an ADD in progress may have read an earlier file.
    Pending,
    /// No ADD assigns the address to a pod.
    Effective,
}

impl Reservations {
    /// Updates the reservations, before the records are read. `config` is the present `node.json`. `try_lock` waits for the plugin's
    /// lock for the given time (`timeout`, but longer the first time), releases it, and returns whether it was acquired.
    pub fn update(
        &mut self,
        config: Option<&NodeConfig>,
        timeout: Duration,
        try_lock: impl FnOnce(Duration) -> bool,
    ) {
        self.written = config.map(|config| {
            let pools = config.pools.iter();
            pools.flat_map(|pool| pool.reserved.clone()).collect()
        });
        let first = FIRST_LOCK_TIMEOUT;
        let timeout = self.effective.as_ref().map_or(first, |_| timeout);
        if self.effective.as_ref() != Some(&self.written) && try_lock(timeout) {
            self.effective = Some(self.written.clone());
        }
    }

    /// Whether the lock was acquired since the agent started.
    #[cfg(test)]
    pub fn was_locked(&self) -> bool {
        self.effective.is_some()
    }

    /// The reservation of an address.
    #[must_use]
    pub fn of(&self, address: IpAddr) -> Reservation {
        let contains = |ranges: &Option<BTreeSet<IpNet>>| {
            let ranges = ranges.as_ref();
            ranges.is_none_or(|ranges| ranges.iter().any(|range| range.contains(&address)))
        };
        match (
            contains(&self.written),
            self.effective.as_ref().is_some_and(contains),
        ) {
            (false, _) => Reservation::Missing,
            (true, false) => Reservation::Pending,
            (true, true) => Reservation::Effective,
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

    /// The reservation of 10.0.0.1 after these updates: the reserved ranges, if the file exists, and whether the lock is acquired.
    fn reservation(updates: &[(Option<&[&str]>, bool)]) -> Reservation {
        let mut reservations = Reservations::default();
        for (reserved, locked) in updates {
            let config = reserved.map(reserving);
            reservations.update(config.as_ref(), Duration::ZERO, |_| *locked);
        }
        reservations.of("10.0.0.1".parse().unwrap())
    }

    #[test]
    fn reservation_is_effective_after_lock_was_acquired() {
        const ONE: &[&str] = &["10.0.0.1/32"];
        const OTHER: &[&str] = &["10.0.0.1/32", "10.0.0.9/32"];
        assert_eq!(reservation(&[(Some(&[]), true)]), Reservation::Missing);
        assert_eq!(reservation(&[(Some(ONE), false)]), Reservation::Pending);
        assert_eq!(reservation(&[(Some(ONE), true)]), Reservation::Effective);
        assert_eq!(
            reservation(&[(Some(&[]), true), (Some(ONE), false)]),
            Reservation::Pending
        );
        assert_eq!(
            reservation(&[(Some(ONE), true), (Some(OTHER), false)]),
            Reservation::Effective
        );
        assert_eq!(
            reservation(&[(Some(ONE), true), (Some(&[]), true)]),
            Reservation::Missing
        );
    }

    #[test]
    fn reservation_stays_effective_without_node_config() {
        const ONE: &[&str] = &["10.0.0.1/32"];
        assert_eq!(reservation(&[(None, true)]), Reservation::Effective);
        assert_eq!(reservation(&[(None, false)]), Reservation::Pending);
        for locked in [true, false] {
            assert_eq!(
                reservation(&[(Some(ONE), true), (None, locked)]),
                Reservation::Effective
            );
            assert_eq!(
                reservation(&[(None, true), (Some(ONE), locked)]),
                Reservation::Effective
            );
        }
    }
}
