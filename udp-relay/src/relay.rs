//! All tunnels, and making them what the configuration says.

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
    /// Queues and sockets of a new tunnel.
    queues: usize,
    tunnels: BTreeMap<String, Tunnel>,
    /// What could not be done, by link.
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

    /// Takes a tunnel in. It carries nothing until [`Relay::apply`].
    pub fn adopt(&mut self, tunnel: Tunnel) {
        let link = tunnel.config().link.clone();
        self.metrics.watch(&link, tunnel.counters().clone());
        self.tunnels.insert(link, tunnel);
    }

    /// The tunnels, for a successor.
    pub fn tunnels(&self) -> impl Iterator<Item = &Tunnel> {
        self.tunnels.values()
    }

    /// What could not be done, in sentences.
    pub fn failures(&self) -> Vec<String> {
        let failures = self.failures.iter();
        failures
            .map(|(link, failure)| format!("{link}: {failure}"))
            .collect()
    }

    /// Makes the tunnels what `config` says, and lets them carry packets. What fails is in [`Relay::failures`] and is
    /// tried again by the next call; the other tunnels do not suffer.
    pub fn apply(&mut self, config: &RelayConfig) {
        let mut failures = BTreeMap::new();
        self.remove_all_but(config, &mut failures);
        for wanted in &config.tunnels {
            if let Err(error) = self.apply_one(wanted) {
                failures.insert(wanted.link.clone(), error_chain(&error));
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

    fn apply_one(&mut self, wanted: &TunnelConfig) -> Result<(), TunnelError> {
        let link = &wanted.link;
        if self.tunnels.get(link).is_some_and(Tunnel::is_broken) {
            self.forget(link);
        }
        if !self.tunnels.contains_key(link) {
            let tunnel = Tunnel::open(wanted.clone(), self.queues)?;
            info!(link, local = %wanted.local, port = wanted.port, peers = wanted.peers.len(), "opened tunnel");
            self.adopt(tunnel);
        }
        let Some(tunnel) = self.tunnels.get_mut(link) else {
            return Ok(());
        };
        tunnel.forget_mtu();
        if tunnel.config() != wanted {
            tunnel.change(wanted.clone())?;
            info!(link, local = %wanted.local, port = wanted.port, peers = wanted.peers.len(), "changed tunnel");
        }
        tunnel.start(&self.ended)
    }

    fn forget(&mut self, link: &str) -> Option<Tunnel> {
        self.metrics.forget(link);
        self.tunnels.remove(link)
    }

    /// Removes links that are in no configuration, those of an earlier process too.
    fn remove_all_but(&mut self, config: &RelayConfig, failures: &mut BTreeMap<String, String>) {
        let left = tun::links(UDP_PREFIX).unwrap_or_default();
        let known = self.tunnels.keys().cloned();
        let is_wanted = |link: &String| config.tunnels.iter().any(|wanted| wanted.link == *link);
        let mut unwanted: Vec<String> = left
            .into_iter()
            .chain(known)
            .filter(|link| !is_wanted(link))
            .collect();
        unwanted.sort();
        unwanted.dedup();
        for link in unwanted {
            let removed = match self.forget(&link) {
                Some(tunnel) => tunnel.remove().map(|()| true),
                None => tun::remove_left(&link).map_err(TunnelError::from),
            };
            match removed {
                Ok(true) => info!(link, "removed tunnel"),
                Ok(false) => {}
                Err(error) => drop(failures.insert(link, error_chain(&error))),
            }
        }
    }

    /// Lets no tunnel carry packets, and keeps all open.
    pub fn stop(&mut self) {
        self.tunnels.values_mut().for_each(Tunnel::stop);
    }

    /// Closes what `config` no longer asks for, while another process does what it does ask for: a link would not go, and
    /// a socket would take datagrams from the other's, as long as they are open here.
    pub fn close_changed(&mut self, config: &RelayConfig) {
        let stays = |tunnel: &Tunnel| {
            let mut wanted = config.tunnels.iter();
            wanted
                .any(|wanted| wanted.link == tunnel.config().link && tunnel.has_sockets_of(wanted))
        };
        let tunnels = self.tunnels.iter();
        let closed: Vec<String> = tunnels
            .filter(|(_, tunnel)| !stays(tunnel))
            .map(|(link, _)| link.clone())
            .collect();
        for link in closed {
            self.forget(&link);
        }
    }
}
