//! All tunnels, and their changes by the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use netweft_common::link_names::UDP_PREFIX;
use netweft_udp_relay::config::{RelayConfig, TunnelConfig};
use nix::sys::eventfd::EventFd;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::sys::tun;
use crate::tunnel::{Tunnel, TunnelError};
use netweft_common::error_chain;

/// The tunnels of this process.
pub struct Relay {
    /// Number of queues, and of sockets, of a new tunnel.
    queues: usize,
    tunnels: BTreeMap<String, Tunnel>,
    /// The errors of the last [`Relay::apply`], by link.
    failures: BTreeMap<String, String>,
    metrics: Metrics,
    ended: Arc<EventFd>,
}

impl Relay {
    /// Without tunnels. `ended` is signalled when a thread of a tunnel ends by itself.
    pub fn new(queues: usize, metrics: Metrics, ended: Arc<EventFd>) -> Self {
        Self {
            queues,
            tunnels: BTreeMap::new(),
            failures: BTreeMap::new(),
            metrics,
            ended,
        }
    }

    /// Adds a tunnel. The tunnel forwards no packets until [`Relay::apply`].
    pub fn adopt(&mut self, tunnel: Tunnel) {
        let link = tunnel.config().link.clone();
        self.metrics.add_tunnel(&link, tunnel.counters().clone());
        self.tunnels.insert(link, tunnel);
    }

    /// The tunnels, for a successor.
    pub fn tunnels(&self) -> impl Iterator<Item = &Tunnel> {
        self.tunnels.values()
    }

    /// The errors of the last [`Relay::apply`], as `LINK: ERROR`.
    pub fn failures(&self) -> Vec<String> {
        let failures = self.failures.iter();
        failures
            .map(|(link, failure)| format!("{link}: {failure}"))
            .collect()
    }

    /// Opens, changes, starts and removes tunnels as in `config`. Errors are in [`Relay::failures`], and do not affect other tunnels.
    /// The next call retries.
    pub fn apply(&mut self, config: &RelayConfig) {
        let mut failures = BTreeMap::new();
        self.remove_unconfigured(config, &mut failures);
        for configured in &config.tunnels {
            if let Err(error) = self.apply_one(configured) {
                failures.insert(configured.link.clone(), error_chain(&error));
            }
        }
        for (link, failure) in &failures {
            if self.failures.get(link) != Some(failure) {
                warn!(link, error = failure, "tunnel failed, will retry");
            }
        }
        for link in self.failures.keys() {
            if !failures.contains_key(link) {
                info!(link, "tunnel recovered");
            }
        }
        self.failures = failures;
    }

    fn apply_one(&mut self, configured: &TunnelConfig) -> Result<(), TunnelError> {
        let link = &configured.link;
        if self.tunnels.get(link).is_some_and(Tunnel::has_failed) {
            self.close(link);
        }
        if !self.tunnels.contains_key(link) {
            let tunnel = Tunnel::open(configured.clone(), self.queues)?;
            info!(link, local = %configured.local, port = configured.port, peers = configured.peers.len(), "opened tunnel");
            self.adopt(tunnel);
        }
        let Some(tunnel) = self.tunnels.get_mut(link) else {
            return Ok(());
        };
        tunnel.reset_mtu();
        if tunnel.config() != configured {
            tunnel.change(configured.clone())?;
            info!(link, local = %configured.local, port = configured.port, peers = configured.peers.len(), "changed tunnel");
        }
        tunnel.start(&self.ended)
    }

    fn close(&mut self, link: &str) -> Option<Tunnel> {
        self.metrics.remove_tunnel(link);
        self.tunnels.remove(link)
    }

    /// Removes the links that are not in the configuration, also those of an earlier process.
    fn remove_unconfigured(
        &mut self,
        config: &RelayConfig,
        failures: &mut BTreeMap<String, String>,
    ) {
        let existing = tun::links(UDP_PREFIX).unwrap_or_default();
        let known = self.tunnels.keys().cloned();
        let is_configured =
            |link: &String| config.tunnels.iter().any(|tunnel| tunnel.link == *link);
        let mut unconfigured: Vec<String> = existing
            .into_iter()
            .chain(known)
            .filter(|link| !is_configured(link))
            .collect();
        unconfigured.sort();
        unconfigured.dedup();
        for link in unconfigured {
            let removed = match self.close(&link) {
                Some(tunnel) => tunnel.remove().map(|()| true),
                None => tun::remove_unused(&link).map_err(TunnelError::from),
            };
            match removed {
                Ok(true) => info!(link, "removed tunnel"),
                Ok(false) => {}
                Err(error) => drop(failures.insert(link, error_chain(&error))),
            }
        }
    }

    /// Stops forwarding in all tunnels, and keeps the tunnels open.
    pub fn stop(&mut self) {
        self.tunnels.values_mut().for_each(Tunnel::stop);
    }

    /// Closes the tunnels that `config` removes or moves to another socket, while the successor applies `config`. An open queue would
    /// keep a removed link, and an open socket would receive datagrams of the successor.
    pub fn close_changed(&mut self, config: &RelayConfig) {
        let is_unchanged = |tunnel: &Tunnel| {
            let mut configured = config.tunnels.iter();
            configured.any(|configured| {
                configured.link == tunnel.config().link && tunnel.has_sockets_of(configured)
            })
        };
        let tunnels = self.tunnels.iter();
        let changed: Vec<String> = tunnels
            .filter(|(_, tunnel)| !is_unchanged(tunnel))
            .map(|(link, _)| link.clone())
            .collect();
        for link in changed {
            self.close(&link);
        }
    }
}
