//! Continuous pings, by default every 10 ms, to measure packet loss. The number of consecutive losses gives the duration of an outage.
//!
//! One additional ping process, the control, withholds some requests. The meter must report this loss, which shows that it can detect
//! losses.

use std::fmt;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::traffic::ping::Answer;

/// The default time between two pings of a pair.
pub const INTERVAL: Duration = Duration::from_millis(10);
/// Number of requests that the control counts but does not send.
const WITHHELD: u16 = 3;
/// Longest acceptable time between two requests. After a longer pause the result is not valid.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The rate and number of pings.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time between two requests of a pair.
    pub interval: Duration,
    /// Requests to each target; `None`: until [`Pings::finish`].
    pub count: Option<u16>,
}

/// The ping process of one pod.
struct Ping {
    source: String,
    child: Child,
}

/// The ping processes of many pods.
pub struct Pings {
    pace: Pace,
    pings: Vec<Ping>,
    control: Option<Ping>,
}

impl Pings {
    /// No processes yet.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            pings: Vec::new(),
            control: None,
        }
    }

    /// Starts pings from a pod. `command` is the probe in the pod's namespace.
    ///
    /// # Errors
    /// The probe cannot be started.
    pub fn add(
        &mut self,
        source: String,
        command: Command,
        targets: &[IpAddr],
    ) -> anyhow::Result<()> {
        let ping = start(source, command, targets, (self.pace, 0))?;
        self.pings.push(ping);
        Ok(())
    }

    /// Starts the control from a pod. `command` is the probe in the pod's namespace.
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

    /// Ends all pings and sums up the losses.
    ///
    /// # Errors
    /// A process has ended early, there is no control, its loss was not found, or the time between two requests was too long to measure.
    pub fn finish(self) -> anyhow::Result<Losses> {
        let mut control = self.control.context("the pings have no control")?;
        let mut pings = self.pings;
        for ping in pings.iter_mut().chain([&mut control]) {
            drop(ping.child.stdin.take());
        }
        for answer in control.answers()? {
            ensure!(
                answer.sent - answer.received >= WITHHELD,
                "the meter did not detect the withheld requests of the control: {answer:?}"
            );
        }
        let mut losses = Losses {
            interval: self.pace.interval,
            sent: 0,
            pause: Duration::ZERO,
            pairs: Vec::new(),
        };
        for ping in pings {
            let source = ping.source.clone();
            for answer in ping.answers()? {
                losses.sent += u64::from(answer.sent);
                losses.pause = losses.pause.max(Duration::from_millis(answer.pause));
                if answer.received < answer.sent {
                    losses.pairs.push((source.clone(), answer));
                }
            }
        }
        ensure!(
            losses.pause < MAX_PAUSE,
            "the meter sent no requests for {:?}, because this machine is too busy; {losses}",
            losses.pause
        );
        Ok(losses)
    }
}

fn start(
    source: String,
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
        .with_context(|| format!("start the pings from {source}"))?;
    Ok(Ping { source, child })
}

impl Ping {
    fn answers(self) -> anyhow::Result<Vec<Answer>> {
        let output = self.child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "the pings from {} ended early: {}",
            self.source,
            String::from_utf8_lossy(&output.stderr)
        );
        let lines = String::from_utf8(output.stdout)?;
        lines
            .lines()
            .map(|line| serde_json::from_str(line).context("read the probe's answer"))
            .collect()
    }
}

/// The losses of all pings.
#[derive(Debug)]
pub struct Losses {
    /// Time between two requests of a pair.
    interval: Duration,
    /// Requests sent, over all pairs.
    pub sent: u64,
    /// The longest time between two requests of a pair. A shorter outage may not have been detected.
    pub pause: Duration,
    /// Pairs with unanswered requests: the name of the source, and the result of the target.
    pub pairs: Vec<(String, Answer)>,
}

impl Losses {
    /// The longest outage of a pair.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let most = self.pairs.iter().map(|(_, answer)| answer.gap).max();
        self.interval * u32::from(most.unwrap_or(0))
    }

    /// The number of unanswered requests.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let lost = |answer: &Answer| u64::from(answer.sent.saturating_sub(answer.received));
        self.pairs.iter().map(|(_, answer)| lost(answer)).sum()
    }

    /// Prints the result. `action` is what happened meanwhile.
    ///
    /// # Errors
    /// A request was not answered.
    pub fn check_none(&self, action: &str) -> anyhow::Result<()> {
        ensure!(self.pairs.is_empty(), "{action}: {self}");
        println!("{action}: {self}");
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
        for (source, answer) in &self.pairs {
            let Answer {
                target,
                sent,
                received,
                gap,
                ..
            } = answer;
            let lost = sent - received;
            let error = answer.error.as_deref().unwrap_or_default();
            write!(
                f,
                "\n  {source} to {target}: {lost} of {sent} lost, {gap} in a row {error}"
            )?;
        }
        Ok(())
    }
}
