//! Random changes of nodes and leaders, determined by a seed.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Simulation;
use super::nodes::name;

/// What happens to the leader in a round.
#[derive(Clone, Copy, Debug)]
pub enum LeaderEvent {
    /// The leader is killed with SIGKILL.
    Killed,
    /// The leader is stopped with SIGSTOP, replaced, and continued with SIGCONT.
    Stopped,
}

/// The nodes of each change in a round.
#[derive(Default)]
struct NodeChanges {
    /// Deleted, and created again within the grace period.
    recreated: Vec<usize>,
    /// Deleted.
    deleted: Vec<usize>,
    /// Created together.
    created: Vec<usize>,
    /// Change their address.
    readdressed: Vec<usize>,
    /// Get many pods.
    filled: Vec<usize>,
    /// Lose most of their pods again.
    emptied: Vec<usize>,
}

impl Simulation {
    /// One round: nodes change while the leader is killed or stopped.
    pub async fn round(&mut self, number: usize, event: LeaderEvent) {
        let changes = self.choose_changes(if number == 0 { 50 } else { self.share() });
        let NodeChanges {
            recreated,
            deleted,
            created,
            readdressed,
            filled,
            emptied,
        } = &changes;
        println!(
            "round {number}: {event:?}; Nodes: {} recreated, {} created, {} with another address, {} with many pods, {} with few pods again",
            recreated.len(),
            created.len(),
            readdressed.len(),
            filled.len(),
            emptied.len()
        );
        let nodes = self.nodes.clone();
        let start = Instant::now();
        nodes
            .delete(&[recreated.as_slice(), deleted].concat())
            .await;
        self.agents.fill(filled, true);
        self.agents.fill(emptied, false);
        // The leader has had time to handle some of the changes.
        sleep(self.random_pause(500)).await;
        let pause = self.random_pause(1000) + self.grace / 4;
        let node_changes = async {
            let recreate = async {
                sleep(pause.saturating_sub(start.elapsed())).await;
                nodes.create(recreated).await;
            };
            tokio::join!(
                nodes.create(created),
                nodes.change_address(readdressed, 100_000),
                recreate
            );
        };
        match event {
            LeaderEvent::Killed => {
                tokio::join!(self.pair.kill_leader(), node_changes);
            }
            LeaderEvent::Stopped => self.stop_leader(node_changes).await,
        }
        self.existing.extend(created);
        self.existing.extend(recreated);
        self.full.retain(|number| !emptied.contains(number));
        self.full.extend(filled);
        self.converge(&format!("round {number}"), false).await;
    }

    /// The leader is stopped while some Nodes are deleted. When it continues, another leader has activated and orphaned
    /// their blocks again, and the grace period that the stopped leader has measured is over.
    async fn stop_leader(&mut self, node_changes: impl Future<Output = ()>) {
        let nodes = self.nodes.clone();
        let absent = self.random.take(&mut self.existing, 4);
        nodes.delete(&absent).await;
        self.wait_until_orphaned(&absent).await;
        let start = Instant::now();
        let stopped = async {
            let stopped = self.pair.stop_leader().await;
            nodes.create(&absent).await;
            stopped
        };
        let (stopped, ()) = tokio::join!(stopped, node_changes);
        self.wait_until_active(&absent).await;
        nodes.delete(&absent).await;
        self.wait_until_orphaned(&absent).await;
        let grace_end = self.grace + Duration::from_millis(500);
        sleep(grace_end.saturating_sub(start.elapsed())).await;
        self.pair.resume(&stopped);
        // Nodes are created while two operators act as leader.
        let created = self.new_numbers(self.share());
        nodes.create(&created).await;
        self.pair.wait_until_not_leader(&stopped).await;
        nodes.create(&absent).await;
        self.existing.extend(created.iter().chain(&absent));
    }

    async fn wait_until_orphaned(&self, numbers: &[usize]) {
        self.wait_until("the blocks are orphaned", |checker| {
            numbers.iter().all(|number| {
                let (subnets, orphaned) = checker.subnets_of(&name(*number));
                subnets == orphaned
            })
        })
        .await;
    }

    async fn wait_until_active(&self, numbers: &[usize]) {
        self.wait_until("the blocks are active again", |checker| {
            numbers.iter().all(|number| {
                let (subnets, orphaned) = checker.subnets_of(&name(*number));
                subnets > 0 && orphaned == 0
            })
        })
        .await;
    }

    /// Released blocks are assigned again: after all never used blocks, the longest released first.
    pub async fn assign_released_blocks(&mut self) {
        loop {
            let half = self.share() * 2;
            let (first, second) = (
                self.random.take(&mut self.existing, half),
                self.random.take(&mut self.existing, half),
            );
            self.pair.has_same_leader();
            self.nodes.delete(&first).await;
            // The leader must observe the releases separately.
            sleep(self.observation_interval + Duration::from_millis(500)).await;
            self.nodes.delete(&second).await;
            let names: Vec<_> = first
                .iter()
                .chain(&second)
                .map(|number| name(*number))
                .collect();
            self.wait_until("the blocks are released", |checker| {
                names.iter().all(|name| checker.subnets_of(name) == (0, 0))
            })
            .await;
            self.pair.wait_until_idle().await;
            let free = self.monitor.with(|checker| {
                let pools = super::pools::names();
                pools
                    .map(|pool| checker.free_blocks(pool))
                    .collect::<Vec<_>>()
            });
            let min_free = free
                .iter()
                .map(|(unused, released)| unused + released)
                .min()
                .unwrap();
            let count = min_free - half / 2;
            println!(
                "released blocks: {count} nodes are created; free blocks, never used and released: {free:?}"
            );
            let created = self.new_numbers(count);
            self.nodes.create(&created).await;
            self.existing.extend(created);
            if self.converge("released blocks", false).await {
                let enough = free.iter().all(|(unused, _)| unused + half / 2 < count);
                assert!(enough, "too few released blocks were assigned");
                return;
            }
            println!("released blocks: the leader has changed, repeating");
        }
    }

    fn choose_changes(&mut self, created: usize) -> NodeChanges {
        let share = self.share();
        let full = std::mem::take(&mut self.full);
        self.existing.retain(|number| !full.contains(number));
        let mut emptied = full.clone();
        let emptied = self.random.take(&mut emptied, share / 2);
        let recreated = self.random.take(&mut self.existing, share);
        let deleted = self.random.take(&mut self.existing, share);
        let filled = self.random.take(&mut self.existing, share);
        let readdressed = self.random.take(&mut self.existing, share);
        self.existing
            .extend(full.iter().chain(&filled).chain(&readdressed));
        self.full = full;
        let created = self.new_numbers(created);
        NodeChanges {
            recreated,
            deleted,
            created,
            readdressed,
            filled,
            emptied,
        }
    }

    /// Number of nodes of one change in a round.
    fn share(&self) -> usize {
        share(self.size)
    }

    fn new_numbers(&mut self, count: usize) -> Vec<usize> {
        let first = self.next;
        self.next += count;
        (first..self.next).collect()
    }

    fn random_pause(&mut self, below: usize) -> Duration {
        Duration::from_millis(self.random.below(below).try_into().unwrap())
    }
}

/// Number of nodes of one change in a round, in a cluster of `size` nodes.
pub fn share(size: usize) -> usize {
    (size / 50).max(4)
}
