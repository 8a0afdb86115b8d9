//! Measurements of BGP convergence.

use std::fmt;
use std::time::Duration;

use crate::harness::process;
use crate::lab::node::Node;
use crate::lab::scenarios::scale::Cluster;

/// The cost of convergence: from the start of the first BIRD until all kernels have routes to all blocks.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Number of session ends, two for each session.
    pub sessions: usize,
    /// Elapsed time.
    pub converged: Duration,
    /// CPU time of all BIRDs.
    pub cpu: Duration,
    /// CPU time of the BIRD with the most.
    pub cpu_of_busiest: Duration,
    /// Median of the BIRDs' memory (PSS), in KiB.
    pub memory: u64,
    /// Largest memory of a BIRD (PSS), in KiB.
    pub memory_of_largest: u64,
    /// The cost of adding a second pool, if measured.
    pub pool_change: Option<PoolChange>,
}

/// The cost of adding a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolChange {
    /// Time until the operator had no more writes.
    pub planned: Duration,
    /// Time until all kernels had routes to all blocks.
    pub converged: Duration,
}

impl Figures {
    /// Measures all BIRDs.
    pub(crate) fn measure(cluster: &Cluster, converged: Duration) -> anyhow::Result<Self> {
        let birds: Vec<u32> = cluster
            .nodes
            .iter()
            .map(Node::bird_pid)
            .collect::<anyhow::Result<_>>()?;
        let all = |measure: fn(u32) -> anyhow::Result<Duration>| {
            let birds = birds.iter().copied();
            birds.map(measure).collect::<anyhow::Result<Vec<_>>>()
        };
        let times = all(process::cpu)?;
        let memory = birds.iter().copied().map(process::memory);
        let mut memory: Vec<u64> = memory.collect::<anyhow::Result<_>>()?;
        memory.sort_unstable();
        let mut sessions = 0;
        for node in &cluster.nodes {
            let bgp = &cluster.store.network(&node.name)?.spec.bgp;
            sessions += bgp.as_ref().map_or(0, |bgp| bgp.sessions.len());
        }
        Ok(Self {
            sessions,
            converged,
            cpu: times.iter().sum(),
            cpu_of_busiest: times.into_iter().max().unwrap_or_default(),
            memory: memory.get(memory.len() / 2).copied().unwrap_or_default(),
            memory_of_largest: memory.last().copied().unwrap_or_default(),
            pool_change: None,
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
            pool_change,
        } = self;
        write!(
            f,
            "{sessions} session ends; converged after {converged:.1?}; CPU of all BIRDs {cpu:.2?}, of the busiest {cpu_of_busiest:.2?}; \
             memory of a BIRD {memory} KiB, of the largest {memory_of_largest} KiB"
        )?;
        if let Some(PoolChange { planned, converged }) = pool_change {
            write!(
                f,
                "; a second pool was planned in {planned:.1?} and converged after {converged:.1?} without a session restart"
            )?;
        }
        Ok(())
    }
}
