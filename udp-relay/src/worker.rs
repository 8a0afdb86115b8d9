//! The threads that carry packets, and how they are stopped.
//!
//! Each queue of a link has a thread that reads it, each socket one that receives. A thread works until there is nothing
//! left and then waits, so that batches grow with the load and a lone packet waits for nothing.

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

/// What the threads of a tunnel work on.
pub struct Work {
    pub link: String,
    pub queues: Vec<Arc<File>>,
    pub sockets: Vec<Arc<OwnedFd>>,
    pub routes: Arc<Shared<Routes>>,
    pub mtu: Arc<AtomicUsize>,
    pub counters: TunnelCounters,
    /// Signalled when a thread ends by itself.
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
    /// There are no threads or descriptors left; none is running then.
    pub fn start(work: &Work) -> io::Result<Self> {
        let mut workers = Self {
            stop: Arc::new(Stop::new()?),
            threads: Vec::new(),
        };
        for (index, (queue, socket)) in work
            .queues
            .iter()
            .zip(work.sockets.iter().cycle())
            .enumerate()
        {
            let counters = work
                .counters
                .outbound
                .get(index)
                .cloned()
                .unwrap_or_default();
            let (queue, socket) = (Arc::clone(queue), Arc::clone(socket));
            let routes = Reader::new(Arc::clone(&work.routes));
            workers.spawn(work, format!("out-{index}"), move |stop| {
                Outbound::new(queue, socket, routes, counters).run(stop)
            })?;
        }
        for (index, (socket, queue)) in work
            .sockets
            .iter()
            .zip(work.queues.iter().cycle())
            .enumerate()
        {
            let inbound = Inbound {
                link: work.link.clone(),
                queue: Arc::clone(queue),
                socket: Arc::clone(socket),
                routes: Reader::new(Arc::clone(&work.routes)),
                mtu: Arc::clone(&work.mtu),
                counters: work
                    .counters
                    .inbound
                    .get(index)
                    .cloned()
                    .unwrap_or_default(),
            };
            workers.spawn(work, format!("in-{index}"), move |stop| inbound.run(stop))?;
        }
        Ok(workers)
    }

    fn spawn(
        &mut self,
        work: &Work,
        name: String,
        run: impl FnOnce(&Stop) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (stop, ended, link) = (
            Arc::clone(&self.stop),
            Arc::clone(&work.ended),
            work.link.clone(),
        );
        let thread = thread::Builder::new().name(name).spawn(move || {
            // Also if it panics.
            let _notice = Notice(ended);
            if let Err(error) = run(&stop) {
                warn!(link, error = %error, "queue ended, will reopen it");
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Whether all are at work.
    pub fn are_well(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Workers {
    /// Returns when all threads have stopped and have forwarded the packets that they have read.
    fn drop(&mut self) {
        self.stop.ask();
        for thread in self.threads.drain(..) {
            // The panic hook has logged a panic.
            let _ = thread.join();
        }
    }
}

struct Notice(Arc<EventFd>);

impl Drop for Notice {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}
