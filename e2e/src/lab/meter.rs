//! Pings, every 10 ms unless told otherwise, while something is done to the network. What was lost in a row tells how long nobody answered.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::pod::Pod;
use crate::ping::Answer;

/// Time between two pings of a pair, where nobody asks for another.
pub const INTERVAL: Duration = Duration::from_millis(10);
/// Requests that the control pretends to send.
const WITHHELD: u16 = 3;

/// Pings that go on until they are asked about.
pub struct Meter {
    interval: Duration,
    pings: Vec<Ping>,
    control: Ping,
}

struct Ping {
    from: String,
    child: Child,
}

/// What was lost.
#[derive(Debug)]
pub struct Losses {
    /// Time between two requests of a pair.
    interval: Duration,
    /// Requests sent, over all pairs.
    pub sent: u64,
    /// Pairs of which a request was not answered: who, and what of whom.
    pub pairs: Vec<(String, Answer)>,
}

impl Losses {
    /// How long a pair was apart at most.
    pub fn longest(&self) -> Duration {
        let most = self.pairs.iter().map(|(_, answer)| answer.gap).max();
        self.interval * u32::from(most.unwrap_or(0))
    }

    /// How many requests were not answered.
    pub fn lost(&self) -> u64 {
        let lost = |answer: &Answer| u64::from(answer.sent.saturating_sub(answer.received));
        self.pairs.iter().map(|(_, answer)| lost(answer)).sum()
    }

    /// Nothing was lost.
    pub fn check_none(&self, while_: &str) -> anyhow::Result<()> {
        ensure!(self.pairs.is_empty(), "{while_}: {self}");
        println!("{while_}: {self}");
        Ok(())
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pairs.is_empty() {
            return write!(f, "{} pings, none lost", self.sent);
        }
        let longest = self.longest();
        write!(f, "{} pings, at most {longest:?} without", self.sent)?;
        for (from, answer) in &self.pairs {
            let Answer {
                target,
                sent,
                received,
                gap,
                ..
            } = answer;
            let lost = sent - received;
            write!(f, "\n  {from} to {target}: {lost} lost, {gap} in a row")?;
        }
        Ok(())
    }
}

impl Meter {
    /// Each of these pods pings every other in every family, but not those on its own node.
    pub fn start(binaries: &Path, pods: &[Pod], interval: Duration) -> anyhow::Result<Self> {
        let far = |from: &Pod| -> Vec<IpAddr> {
            let others = pods.iter().filter(|pod| pod.node != from.node);
            others.flat_map(|pod| pod.addresses.clone()).collect()
        };
        let start = |from: &Pod| ping(binaries, from, &far(from), (interval, 0));
        let pings = pods.iter().map(start).collect::<anyhow::Result<_>>()?;
        let [first, .., last] = pods else {
            anyhow::bail!("a meter takes two pods");
        };
        let target = last.addresses.first().context("a pod's address")?;
        let control = ping(binaries, first, &[*target], (interval, WITHHELD))?;
        Ok(Self {
            interval,
            pings,
            control,
        })
    }

    /// End the pings, and count.
    ///
    /// # Errors
    /// A ping has ended early, or the control's loss was not found: a meter that finds nothing proves nothing.
    pub fn finish(self) -> anyhow::Result<Losses> {
        let Self {
            interval,
            mut pings,
            mut control,
        } = self;
        for ping in pings.iter_mut().chain([&mut control]) {
            drop(ping.child.stdin.take());
        }
        for answer in answers(control)? {
            ensure!(
                answer.sent - answer.received >= WITHHELD,
                "the meter did not find the loss that was made on purpose: {answer:?}"
            );
        }
        let mut losses = Losses {
            interval,
            sent: 0,
            pairs: Vec::new(),
        };
        for ping in pings {
            let from = ping.from.clone();
            for answer in answers(ping)? {
                losses.sent += u64::from(answer.sent);
                if answer.received < answer.sent {
                    losses.pairs.push((from.clone(), answer));
                }
            }
        }
        Ok(losses)
    }
}

fn ping(
    binaries: &Path,
    from: &Pod,
    targets: &[IpAddr],
    (interval, withhold): (Duration, u16),
) -> anyhow::Result<Ping> {
    let mut command: Command = from.space.command(binaries.join("netweft-probe"));
    command.args(["ping", "--until-eof"]);
    command.args(["--count", &u16::MAX.to_string()]);
    command.args(["--interval", &interval.as_millis().to_string()]);
    command.args(["--withhold", &withhold.to_string()]);
    command.args(targets.iter().map(ToString::to_string));
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start netweft-probe")?;
    Ok(Ping {
        from: from.name.clone(),
        child,
    })
}

fn answers(ping: Ping) -> anyhow::Result<Vec<Answer>> {
    let output = ping.child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "the pings of {} ended early: {}",
        ping.from,
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout)?;
    lines
        .lines()
        .map(|line| serde_json::from_str(line).context("read the probe's answer"))
        .collect()
}
