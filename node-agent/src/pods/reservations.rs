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

/// The ranges that no ADD gives addresses of.
#[derive(Clone, Debug, Default)]
pub struct Reservations {
    /// Those of the present `node.json`.
    written: BTreeSet<IpNet>,
    /// Those of `node.json` when the lock was had last; `None` before the first time.
    settled: Option<BTreeSet<IpNet>>,
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
    pub fn look(
        &mut self,
        config: Option<&NodeConfig>,
        usual: Duration,
        locked: impl FnOnce(Duration) -> bool,
    ) {
        let pools = config.into_iter().flat_map(|config| &config.pools);
        self.written = pools.flat_map(|pool| pool.reserved.clone()).collect();
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
        let has = |ranges: &BTreeSet<IpNet>| ranges.iter().any(|range| range.contains(&address));
        match (has(&self.written), self.settled.as_ref().is_some_and(has)) {
            (false, _) => Hold::Open,
            (true, false) => Hold::Reserved,
            (true, true) => Hold::Settled,
        }
    }
}
