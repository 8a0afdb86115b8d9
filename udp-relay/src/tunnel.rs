//! One tunnel: its link, its sockets, its threads.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use netweft_udp_relay::config::TunnelConfig;
use nix::sys::eventfd::EventFd;

use crate::counters::TunnelCounters;
use crate::rcu::Shared;
use crate::routes::Routes;
use crate::sys::tun::{self, TunError};
use crate::sys::udp;
use crate::worker::{Work, Workers};

/// Why a tunnel is not there.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// Its link cannot be had.
    #[error(transparent)]
    Link(#[from] TunError),
    /// Its sockets cannot be had.
    #[error("listen on {0} port {1}")]
    Socket(std::net::IpAddr, u16, #[source] io::Error),
    /// Its threads cannot be had.
    #[error("start threads")]
    Threads(#[source] io::Error),
}

/// A tunnel, carrying packets or not.
///
/// It is taken apart in this order. Closing the last queue can take a while (`unregister_netdevice`), and once the link is
/// gone another relay may have sockets on the same port, from which these must not take datagrams.
pub struct Tunnel {
    workers: Option<Workers>,
    sockets: Vec<Arc<OwnedFd>>,
    queues: Vec<Arc<File>>,
    config: TunnelConfig,
    routes: Arc<Shared<Routes>>,
    mtu: Arc<AtomicUsize>,
    counters: TunnelCounters,
}

impl Tunnel {
    /// Opens link and sockets.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(config: TunnelConfig, queues: usize) -> Result<Self, TunnelError> {
        let sockets = open_sockets(&config, queues)?;
        let queues = tun::open(&config.link, queues)?;
        Ok(Self::of(config, queues, sockets))
    }

    /// Of link and sockets that are open already, one of each at least.
    pub fn of(config: TunnelConfig, queues: Vec<File>, sockets: Vec<OwnedFd>) -> Self {
        Self {
            routes: Arc::new(Shared::new(Routes::new(&config))),
            // Asked for as soon as something is longer.
            mtu: Arc::default(),
            counters: TunnelCounters::new(queues.len(), sockets.len()),
            queues: queues.into_iter().map(Arc::new).collect(),
            sockets: sockets.into_iter().map(Arc::new).collect(),
            workers: None,
            config,
        }
    }

    /// What it is to do.
    pub const fn config(&self) -> &TunnelConfig {
        &self.config
    }

    /// What it has done.
    pub const fn counters(&self) -> &TunnelCounters {
        &self.counters
    }

    /// The open queues and sockets, for a successor.
    pub fn descriptors(&self) -> (&[Arc<File>], &[Arc<OwnedFd>]) {
        (&self.queues, &self.sockets)
    }

    /// Whether this tunnel's sockets are what `config` asks for.
    pub fn has_sockets_of(&self, config: &TunnelConfig) -> bool {
        (self.config.local, self.config.port) == (config.local, config.port)
    }

    /// Takes a changed configuration for the same link. Peers are exchanged without touching a packet; another address or
    /// port takes new sockets, and what the old ones still hold is lost.
    ///
    /// # Errors
    /// The new sockets cannot be had; then all is as before.
    pub fn change(&mut self, config: TunnelConfig) -> Result<(), TunnelError> {
        if !self.has_sockets_of(&config) {
            let sockets = open_sockets(&config, self.sockets.len())?;
            self.stop();
            self.sockets = sockets.into_iter().map(Arc::new).collect();
        }
        self.routes.swap(Routes::new(&config));
        self.config = config;
        Ok(())
    }

    /// Asks for the link's MTU again with the next packet.
    pub fn forget_mtu(&self) {
        self.mtu.store(0, Ordering::Relaxed);
    }

    /// Whether a thread has ended by itself.
    pub fn is_broken(&self) -> bool {
        self.workers
            .as_ref()
            .is_some_and(|workers| !workers.are_well())
    }

    /// Starts forwarding. `ended` is signalled when a thread ends by itself.
    ///
    /// # Errors
    /// There are no threads left.
    pub fn start(&mut self, ended: &Arc<EventFd>) -> Result<(), TunnelError> {
        if self.workers.is_none() {
            let workers = Workers::start(&Work {
                link: self.config.link.clone(),
                queues: self.queues.clone(),
                sockets: self.sockets.clone(),
                routes: Arc::clone(&self.routes),
                mtu: Arc::clone(&self.mtu),
                counters: self.counters.clone(),
                ended: Arc::clone(ended),
            });
            self.workers = Some(workers.map_err(TunnelError::Threads)?);
        }
        Ok(())
    }

    /// Stops forwarding. Before the function returns, the threads forward the packets that they have read.
    pub fn stop(&mut self) {
        self.workers = None;
    }

    /// Removes the link, as soon as no other process has it open.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(mut self) -> Result<(), TunnelError> {
        self.stop();
        if let Some(queue) = self.queues.first() {
            tun::release(&self.config.link, queue)?;
        }
        Ok(())
    }
}

fn open_sockets(config: &TunnelConfig, count: usize) -> Result<Vec<OwnedFd>, TunnelError> {
    udp::open(config.local, config.port, count)
        .map_err(|source| TunnelError::Socket(config.local, config.port, source))
}
