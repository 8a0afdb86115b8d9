//! What it took.

use std::fmt;
use std::time::Duration;

use crate::harness::process;
use crate::lab::node::Node;
use crate::lab::scenarios::scale::Site;

/// What it took until all kernels had all blocks, from the start of the first BIRD.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Ends of sessions.
    pub sessions: usize,
    /// Time on the clock.
    pub converged: Duration,
    /// Time on a CPU, of all BIRDs.
    pub cpu: Duration,
    /// The same of the one that had most to do.
    pub cpu_of_busiest: Duration,
    /// Memory of a BIRD (PSS) in KiB, in the middle.
    pub memory: u64,
    /// The same of the largest.
    pub memory_of_largest: u64,
    /// What it took until a second pool's blocks were everywhere.
    pub edit: Option<Edit>,
}

/// A change for all nodes.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// Until the operator's core had said all.
    pub planned: Duration,
    /// Until all kernels had all blocks.
    pub known: Duration,
}

impl Figures {
    /// Look at all BIRDs now.
    pub(crate) fn look(site: &Site, converged: Duration) -> anyhow::Result<Self> {
        let birds: Vec<u32> = site
            .nodes
            .iter()
            .map(Node::bird_pid)
            .collect::<anyhow::Result<_>>()?;
        let all = |of: fn(u32) -> anyhow::Result<Duration>| {
            let birds = birds.iter().copied();
            birds.map(of).collect::<anyhow::Result<Vec<_>>>()
        };
        let times = all(process::cpu)?;
        let memory = birds.iter().copied().map(process::memory);
        let mut memory: Vec<u64> = memory.collect::<anyhow::Result<_>>()?;
        memory.sort_unstable();
        let mut sessions = 0;
        for node in &site.nodes {
            let bgp = &site.store.network(&node.name)?.spec.bgp;
            sessions += bgp.as_ref().map_or(0, |bgp| bgp.sessions.len());
        }
        Ok(Self {
            sessions,
            converged,
            cpu: times.iter().sum(),
            cpu_of_busiest: times.into_iter().max().unwrap_or_default(),
            memory: memory.get(memory.len() / 2).copied().unwrap_or_default(),
            memory_of_largest: memory.last().copied().unwrap_or_default(),
            edit: None,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sessions,
            converged,
            cpu,
            cpu_of_busiest,
            memory,
            memory_of_largest,
            edit,
        } = self;
        write!(
            f,
            "{sessions} ends of sessions; all blocks everywhere after {converged:.1?}; BIRDs took {cpu:.2?} of CPU, the busiest {cpu_of_busiest:.2?}, \
             and have {memory} KiB each, the largest {memory_of_largest}"
        )?;
        if let Some(Edit { planned, known }) = edit {
            write!(
                f,
                "; a second pool was planned in {planned:.1?} and known everywhere after {known:.1?}, no session began anew"
            )?;
        }
        Ok(())
    }
}
