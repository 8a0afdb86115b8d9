//! The threads that forward packets, and their end.
//!
//! Each queue of a link has a thread that reads from the queue, and each socket has a thread that receives from the socket. A thread
//! waits only if there are no packets. The batches therefore grow with the load, and a single packet is not delayed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::EventFd;
use tracing::warn;

use crate::counters::TunnelCounters;
use crate::inbound::Inbound;
use crate::outbound::Outbound;
use crate::rcu::{Reader, Shared};
use crate::routes::Routes;
use crate::stop::Stop;

/// The resources that the threads of a tunnel use.
pub struct WorkerResources {
    pub link: String,
    pub queues: Vec<Arc<File>>,
    pub sockets: Vec<Arc<OwnedFd>>,
    pub routes: Arc<Shared<Routes>>,
    pub mtu: Arc<AtomicUsize>,
    pub counters: TunnelCounters,
    /// Signalled when a thread ends.
    pub ended: Arc<EventFd>,
}

/// The running threads of a tunnel.
#[derive(Debug)]
pub struct Workers {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts a thread for each queue and each socket.
    ///
    /// # Errors
    /// A thread or an eventfd cannot be created. All started threads are stopped.
    pub fn start(resources: &WorkerResources) -> io::Result<Self> {
        let mut workers = Self {
            stop: Arc::new(Stop::new()?),
            threads: Vec::new(),
        };
        for (index, (queue, socket)) in resources
            .queues
            .iter()
            .zip(resources.sockets.iter().cycle())
            .enumerate()
        {
            let counters = resources
                .counters
                .outbound
                .get(index)
                .cloned()
                .unwrap_or_default();
            let (queue, socket) = (Arc::clone(queue), Arc::clone(socket));
            let routes = Reader::new(Arc::clone(&resources.routes));
            workers.spawn(resources, format!("out-{index}"), move |stop| {
                Outbound::new(queue, socket, routes, counters).run(stop)
            })?;
        }
        for (index, (socket, queue)) in resources
            .sockets
            .iter()
            .zip(resources.queues.iter().cycle())
            .enumerate()
        {
            let inbound = Inbound {
                link: resources.link.clone(),
                queue: Arc::clone(queue),
                socket: Arc::clone(socket),
                routes: Reader::new(Arc::clone(&resources.routes)),
                mtu: Arc::clone(&resources.mtu),
                counters: resources
                    .counters
                    .inbound
                    .get(index)
                    .cloned()
                    .unwrap_or_default(),
            };
            workers.spawn(resources, format!("in-{index}"), move |stop| {
                inbound.run(stop)
            })?;
        }
        Ok(workers)
    }

    fn spawn(
        &mut self,
        resources: &WorkerResources,
        name: String,
        run: impl FnOnce(&Stop) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (stop, ended, link) = (
            Arc::clone(&self.stop),
            Arc::clone(&resources.ended),
            resources.link.clone(),
        );
        let thread = thread::Builder::new().name(name).spawn(move || {
            // A guard, to signal the end also after a panic.
            let _guard = SignalOnDrop(ended);
            if let Err(error) = run(&stop) {
                warn!(link, error = %error, "queue ended, will reopen it");
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Whether all threads are running.
    pub fn are_running(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Workers {
    /// Returns when all threads have stopped and have forwarded the packets that they have read.
    fn drop(&mut self) {
        self.stop.request();
        for thread in self.threads.drain(..) {
            // The panic hook has logged a panic.
            let _ = thread.join();
        }
    }
}

struct SignalOnDrop(Arc<EventFd>);

impl Drop for SignalOnDrop {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}
