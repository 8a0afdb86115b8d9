//! Pings, every 10 ms by default, during a change of the network. The number of pings lost in a row shows the duration of the
//! interruption.
//!
//! Every meter contains one loss that is made on purpose and must be found: a meter that finds nothing proves nothing.

use std::fmt;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::traffic::ping::Answer;

/// The default time between two pings of a pair.
pub const INTERVAL: Duration = Duration::from_millis(10);
/// Requests that the control pretends to send.
const WITHHELD: u16 = 3;
/// A meter that was kept from sending for so long has not looked.
const STARVED: Duration = Duration::from_secs(2);

/// How a pod pings.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time between two requests of a pair.
    pub interval: Duration,
    /// Requests to each target; `None`: until [`Pings::finish`].
    pub count: Option<u16>,
}

/// One pod's pings.
struct Ping {
    from: String,
    child: Child,
}

/// Pings of many pods that go on until they have been counted.
pub struct Pings {
    pace: Pace,
    pings: Vec<Ping>,
    control: Option<Ping>,
}

impl Pings {
    /// None yet.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            pings: Vec::new(),
            control: None,
        }
    }

    /// Lets a pod ping these. `command` is the probe where the pod is.
    ///
    /// # Errors
    /// The probe cannot be started.
    pub fn add(
        &mut self,
        from: String,
        command: Command,
        targets: &[IpAddr],
    ) -> anyhow::Result<()> {
        let ping = start(from, command, targets, (self.pace, 0))?;
        self.pings.push(ping);
        Ok(())
    }

    /// Lets a pod ping one more time, some requests of which are not sent.
    ///
    /// # Errors
    /// The probe cannot be started.
    pub fn control(&mut self, command: Command, target: IpAddr) -> anyhow::Result<()> {
        let control = start(
            "the control".to_owned(),
            command,
            &[target],
            (self.pace, WITHHELD),
        )?;
        self.control = Some(control);
        Ok(())
    }

    /// Waits until all pings have ended, and counts.
    ///
    /// # Errors
    /// A ping has ended early, the control's loss was not found, or the meter was kept from measuring.
    pub fn finish(self) -> anyhow::Result<Losses> {
        let mut control = self.control.context("a meter has a control")?;
        let mut pings = self.pings;
        for ping in pings.iter_mut().chain([&mut control]) {
            drop(ping.child.stdin.take());
        }
        for answer in control.answers()? {
            ensure!(
                answer.sent - answer.received >= WITHHELD,
                "the meter did not find the loss that was made on purpose: {answer:?}"
            );
        }
        let mut losses = Losses {
            interval: self.pace.interval,
            sent: 0,
            pause: Duration::ZERO,
            pairs: Vec::new(),
        };
        for ping in pings {
            let from = ping.from.clone();
            for answer in ping.answers()? {
                losses.sent += u64::from(answer.sent);
                losses.pause = losses.pause.max(Duration::from_millis(answer.pause));
                if answer.received < answer.sent {
                    losses.pairs.push((from.clone(), answer));
                }
            }
        }
        ensure!(
            losses.pause < STARVED,
            "the meter itself was kept from sending for {:?}: this machine is too busy to measure; {losses}",
            losses.pause
        );
        Ok(losses)
    }
}

fn start(
    from: String,
    mut command: Command,
    targets: &[IpAddr],
    (pace, withhold): (Pace, u16),
) -> anyhow::Result<Ping> {
    command.arg("ping");
    if pace.count.is_none() {
        command.arg("--until-eof");
    }
    let count = pace.count.unwrap_or(u16::MAX);
    command.args(["--count", &count.to_string()]);
    command.args(["--interval", &pace.interval.as_millis().to_string()]);
    command.args(["--withhold", &withhold.to_string()]);
    command.args(targets.iter().map(ToString::to_string));
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start the pings of {from}"))?;
    Ok(Ping { from, child })
}

impl Ping {
    fn answers(self) -> anyhow::Result<Vec<Answer>> {
        let output = self.child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "the pings of {} ended early: {}",
            self.from,
            String::from_utf8_lossy(&output.stderr)
        );
        let lines = String::from_utf8(output.stdout)?;
        lines
            .lines()
            .map(|line| serde_json::from_str(line).context("read the probe's answer"))
            .collect()
    }
}

/// What was lost.
#[derive(Debug)]
pub struct Losses {
    /// Time between two requests of a pair.
    interval: Duration,
    /// Requests sent, over all pairs.
    pub sent: u64,
    /// The longest time between two requests of a pair: a shorter loss than this may have gone unseen.
    pub pause: Duration,
    /// Pairs with an unanswered request: the source, and the answers of the target.
    pub pairs: Vec<(String, Answer)>,
}

impl Losses {
    /// How long a pair was apart at most.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let most = self.pairs.iter().map(|(_, answer)| answer.gap).max();
        self.interval * u32::from(most.unwrap_or(0))
    }

    /// How many requests were not answered.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let lost = |answer: &Answer| u64::from(answer.sent.saturating_sub(answer.received));
        self.pairs.iter().map(|(_, answer)| lost(answer)).sum()
    }

    /// Nothing was lost.
    ///
    /// # Errors
    /// Something was.
    pub fn check_none(&self, while_: &str) -> anyhow::Result<()> {
        ensure!(self.pairs.is_empty(), "{while_}: {self}");
        println!("{while_}: {self}");
        Ok(())
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, pause, .. } = self;
        if self.pairs.is_empty() {
            return write!(f, "{sent} pings, none lost, {pause:?} between two at most");
        }
        let longest = self.longest();
        write!(
            f,
            "{sent} pings, {pause:?} between two at most, and at most {longest:?} without an answer"
        )?;
        for (from, answer) in &self.pairs {
            let Answer {
                target,
                sent,
                received,
                gap,
                ..
            } = answer;
            let lost = sent - received;
            let why = answer.error.as_deref().unwrap_or_default();
            write!(
                f,
                "\n  {from} to {target}: {lost} of {sent} lost, {gap} in a row {why}"
            )?;
        }
        Ok(())
    }
}
