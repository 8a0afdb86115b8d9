//! One tunnel: link, sockets and threads.

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
use crate::worker::{WorkerResources, Workers};

/// Why a tunnel cannot be opened, changed, started or removed.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The link cannot be opened or removed.
    #[error(transparent)]
    Link(#[from] TunError),
    /// The sockets cannot be opened.
    #[error("listen on {0} port {1}")]
    Socket(std::net::IpAddr, u16, #[source] io::Error),
    /// The threads cannot be started.
    #[error("start threads")]
    Threads(#[source] io::Error),
}

/// A tunnel. It forwards packets if it has workers.
///
/// The fields are dropped in this order. The sockets are closed before the queues: closing the last queue can take long
/// (`unregister_netdevice`), and afterwards another relay may have sockets on the same port, whose datagrams these sockets must not
/// receive.
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
    /// A socket or a queue cannot be opened.
    pub fn open(config: TunnelConfig, queues: usize) -> Result<Self, TunnelError> {
        let sockets = open_sockets(&config, queues)?;
        let queues = tun::open(&config.link, queues)?;
        Ok(Self::from_descriptors(config, queues, sockets))
    }

    /// A tunnel with open queues and sockets, at least one of each.
    pub fn from_descriptors(
        config: TunnelConfig,
        queues: Vec<File>,
        sockets: Vec<OwnedFd>,
    ) -> Self {
        Self {
            routes: Arc::new(Shared::new(Routes::new(&config))),
            // 0: the first packet causes a read of the MTU.
            mtu: Arc::default(),
            counters: TunnelCounters::new(queues.len(), sockets.len()),
            queues: queues.into_iter().map(Arc::new).collect(),
            sockets: sockets.into_iter().map(Arc::new).collect(),
            workers: None,
            config,
        }
    }

    /// The configuration.
    pub const fn config(&self) -> &TunnelConfig {
        &self.config
    }

    /// The counters of the workers.
    pub const fn counters(&self) -> &TunnelCounters {
        &self.counters
    }

    /// The open queues and sockets, for a successor.
    pub fn descriptors(&self) -> (&[Arc<File>], &[Arc<OwnedFd>]) {
        (&self.queues, &self.sockets)
    }

    /// Whether the sockets have the local address and port of `config`.
    pub fn has_sockets_of(&self, config: &TunnelConfig) -> bool {
        (self.config.local, self.config.port) == (config.local, config.port)
    }

    /// Applies another configuration of the same link. A change of peers loses no packet. Another address or port needs new sockets,
    /// and the datagrams in the buffers of the old sockets are lost.
    ///
    /// # Errors
    /// The new sockets cannot be opened. The tunnel remains unchanged.
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

    /// Causes a read of the MTU of the link with the next packet.
    pub fn reset_mtu(&self) {
        self.mtu.store(0, Ordering::Relaxed);
    }

    /// Whether a thread has ended because of an error.
    pub fn has_failed(&self) -> bool {
        self.workers
            .as_ref()
            .is_some_and(|workers| !workers.are_running())
    }

    /// Starts forwarding. `ended` is signalled when a thread ends.
    ///
    /// # Errors
    /// A thread or an eventfd cannot be created.
    pub fn start(&mut self, ended: &Arc<EventFd>) -> Result<(), TunnelError> {
        if self.workers.is_none() {
            let workers = Workers::start(&WorkerResources {
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

    /// Removes the link. If another process has the link open, the kernel removes the link when that process closes it.
    ///
    /// # Errors
    /// The ioctl that clears the persistence of the link fails.
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
