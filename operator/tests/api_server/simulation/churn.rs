//! What nodes and leaders go through, by a seed.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Simulation;
use super::nodes::name;

/// What becomes of the leader in a round.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// SIGKILL.
    Killed,
    /// SIGSTOP, replaced, SIGCONT.
    Stopped,
}

/// Who does what in a round.
#[derive(Default)]
struct Choice {
    /// Deleted, and created again within the grace.
    returning: Vec<usize>,
    /// Deleted for good.
    going: Vec<usize>,
    /// New ones, all at once.
    coming: Vec<usize>,
    /// Get another address.
    moving: Vec<usize>,
    /// Run short of addresses.
    filling: Vec<usize>,
    /// Ran short, and do so no more.
    emptying: Vec<usize>,
}

impl Simulation {
    /// One round: nodes come, go, return, move, fill and empty while the leader meets its fate.
    pub async fn round(&mut self, number: usize, fate: Fate) {
        let choice = self.choose(if number == 0 { 50 } else { self.share() });
        let Choice {
            returning,
            going,
            coming,
            moving,
            filling,
            emptying,
        } = &choice;
        println!(
            "round {number}: {fate:?}; {} return, {} renamed or new, {} moved, {} short, {} with room again",
            returning.len(),
            coming.len(),
            moving.len(),
            filling.len(),
            emptying.len()
        );
        let nodes = self.nodes.clone();
        let left = Instant::now();
        nodes.leave(&[returning.as_slice(), going].concat()).await;
        self.agents.fill(filling, true);
        self.agents.fill(emptying, false);
        // The leader has had time for some of it.
        sleep(self.random_pause(500)).await;
        let away = self.random_pause(1000) + self.grace / 4;
        let nodes_do = async {
            let back = async {
                sleep(away.saturating_sub(left.elapsed())).await;
                nodes.join(returning).await;
            };
            tokio::join!(nodes.join(coming), nodes.readdress(moving, 100_000), back);
        };
        match fate {
            Fate::Killed => {
                tokio::join!(self.pair.kill_leader(), nodes_do);
            }
            Fate::Stopped => self.stopped(nodes_do).await,
        }
        self.live.extend(coming);
        self.live.extend(returning);
        self.full.retain(|number| !emptying.contains(number));
        self.full.extend(filling);
        self.settle(&format!("round {number}"), false).await;
    }

    /// The leader is stopped while some nodes are away. When it is resumed their blocks have been taken up and orphaned again by
    /// another, and the grace that it has been counting itself has run out long ago.
    async fn stopped(&mut self, nodes_do: impl Future<Output = ()>) {
        let nodes = self.nodes.clone();
        let wanderers = self.random.take(&mut self.live, 4);
        nodes.leave(&wanderers).await;
        self.until_orphaned(&wanderers).await;
        let begun = Instant::now();
        let stopped = async {
            let stopped = self.pair.stop_leader().await;
            nodes.join(&wanderers).await;
            stopped
        };
        let (stopped, ()) = tokio::join!(stopped, nodes_do);
        self.until_active(&wanderers).await;
        nodes.leave(&wanderers).await;
        self.until_orphaned(&wanderers).await;
        let over = self.grace + Duration::from_millis(500);
        sleep(over.saturating_sub(begun.elapsed())).await;
        self.pair.resume(&stopped);
        // Others join while two believe that they lead.
        let coming = self.new_numbers(self.share());
        nodes.join(&coming).await;
        self.pair.until_resigned(&stopped).await;
        nodes.join(&wanderers).await;
        self.live.extend(coming.iter().chain(&wanderers));
    }

    async fn until_orphaned(&self, numbers: &[usize]) {
        self.until("their blocks are orphaned", |book| {
            numbers.iter().all(|number| {
                let (held, orphaned) = book.held_by(&name(*number));
                held == orphaned
            })
        })
        .await;
    }

    async fn until_active(&self, numbers: &[usize]) {
        self.until("their blocks are theirs again", |book| {
            numbers.iter().all(|number| {
                let (held, orphaned) = book.held_by(&name(*number));
                held > 0 && orphaned == 0
            })
        })
        .await;
    }

    /// Released blocks are given away again: after those that nobody has had, and the longest free first.
    pub async fn reuse(&mut self) {
        loop {
            let half = self.share() * 2;
            let (first, second) = (
                self.random.take(&mut self.live, half),
                self.random.take(&mut self.live, half),
            );
            self.pair.same_leader();
            self.nodes.leave(&first).await;
            // So that the leader looks at least once between the two.
            sleep(self.look + Duration::from_millis(500)).await;
            self.nodes.leave(&second).await;
            let gone: Vec<_> = first
                .iter()
                .chain(&second)
                .map(|number| name(*number))
                .collect();
            self.until("their blocks are given back", |book| {
                gone.iter().all(|name| book.held_by(name) == (0, 0))
            })
            .await;
            self.pair.until_at_rest().await;
            let free = self.ledger.with(|book| {
                let pools = super::pools::names();
                pools.map(|pool| book.free(pool)).collect::<Vec<_>>()
            });
            let least = free
                .iter()
                .map(|(unused, freed)| unused + freed)
                .min()
                .unwrap();
            let count = least - half / 2;
            println!("reuse: {count} nodes join; free, never used and given back: {free:?}");
            let coming = self.new_numbers(count);
            self.nodes.join(&coming).await;
            self.live.extend(coming);
            if self.settle("reuse", false).await {
                let enough = free.iter().all(|(unused, _)| unused + half / 2 < count);
                assert!(enough, "hardly a block was given twice");
                return;
            }
            println!("reuse: the leader changed meanwhile, again");
        }
    }

    fn choose(&mut self, coming: usize) -> Choice {
        let share = self.share();
        let full = std::mem::take(&mut self.full);
        self.live.retain(|number| !full.contains(number));
        let mut emptying = full.clone();
        let emptying = self.random.take(&mut emptying, share / 2);
        let returning = self.random.take(&mut self.live, share);
        let going = self.random.take(&mut self.live, share);
        let filling = self.random.take(&mut self.live, share);
        let moving = self.random.take(&mut self.live, share);
        self.live.extend(full.iter().chain(&filling).chain(&moving));
        self.full = full;
        let coming = self.new_numbers(coming);
        Choice {
            returning,
            going,
            coming,
            moving,
            filling,
            emptying,
        }
    }

    /// How many nodes do the same thing in a round.
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

/// How many of so many nodes do the same thing in a round.
pub fn share(size: usize) -> usize {
    (size / 50).max(4)
}
