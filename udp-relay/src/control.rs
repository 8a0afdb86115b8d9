//! Waits for what can happen and says what follows. Packets do not pass here.
//!
//! A relay serves, or it stands by: its successor serves, and it keeps everything open so that it can serve again at once
//! should the successor end.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use netweft_common::heartbeat::HEARTBEAT_INTERVAL;
use netweft_udp_relay::config::RelayConfig;
use tracing::{info, warn};

use crate::drop_log::Report;
use crate::event_sources::{EventSources, readable};
use crate::handover_protocol::{Connection, Listener, Message, VERSION};
use crate::metrics::Metrics;
use crate::relay::Relay;
use crate::takeover;
use netweft_common::error_chain;

/// The configuration is read this often even when nothing seems to have happened: a lost notice must not last.
const REREAD: Duration = Duration::from_secs(60);
/// How long before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a successor may take from its request to serving.
const HAND_OVER: Duration = Duration::from_secs(10);
/// Relays that stand by at a time; there is one, or two when something has gone wrong.
const PREDECESSORS: usize = 8;
/// What this relay is to the others of its node.
enum Role {
    /// It carries packets.
    Serving {
        listener: Listener,
        /// Who has the tunnels too and is about to carry packets, and until when.
        successor: Option<(Connection, Instant)>,
    },
    /// Its successor carries packets.
    Standby { successor: Connection },
}

/// The loop's state.
pub struct Control {
    dir: PathBuf,
    relay: Relay,
    role: Role,
    /// Relays to which this one is the successor. They see by the connection when it ends.
    predecessors: Vec<Connection>,
    /// What is wrong with the configuration.
    bad: Option<String>,
    metrics: Metrics,
    report: Report,
    /// When to look at the configuration again without a notice.
    look_at: Instant,
}

impl Control {
    /// Takes over, or begins anew.
    ///
    /// # Errors
    /// There is a relay that does not hand over, or the configuration cannot be used and it serves on.
    pub fn start(dir: PathBuf, mut relay: Relay, metrics: Metrics) -> anyhow::Result<Self> {
        let predecessor = takeover::ask(&dir, &mut relay)
            .context("take over from the relay that serves on this node")?;
        let config = RelayConfig::read(&dir);
        let mut bad = None;
        match config {
            Ok(config) => relay.apply(&config),
            // Without a configuration the predecessor does better.
            Err(error) if predecessor.is_some() => return Err(error).context("take over"),
            Err(error) => bad = Some(error_chain(&error)),
        }
        if let Some(predecessor) = &predecessor {
            takeover::confirm(predecessor);
        }
        if let Some(bad) = &bad {
            warn!(error = bad, "configuration is invalid");
        }
        let listener = Listener::bind(&dir).context("listen for other relays")?;
        metrics.serving(true);
        info!(taken_over = predecessor.is_some(), "serving");
        Ok(Self {
            role: Role::Serving {
                listener,
                successor: None,
            },
            predecessors: predecessor.into_iter().collect(),
            look_at: next_look(&relay, bad.as_ref()),
            report: Report::new(metrics.clone()),
            dir,
            relay,
            bad,
            metrics,
        })
    }

    /// Waits until something happens, and does what follows. Says whether to go on.
    ///
    /// # Errors
    /// The wait fails, or other relays and probes cannot connect to this relay.
    pub fn wait(&mut self, sources: &EventSources) -> anyhow::Result<bool> {
        let happened = self.poll(sources).context("wait")?;
        if happened.signal {
            return Ok(false);
        }
        if happened.ended {
            // Not at once: what ends a thread again and again must not keep the node busy.
            sources.forget_end();
            self.look_at = self.look_at.min(Instant::now() + RETRY);
        }
        if happened.change && sources.is_about_config() || Instant::now() >= self.look_at {
            self.follow();
        }
        if happened.listener {
            self.answer();
        }
        if happened.successor || self.is_too_slow() {
            self.hear_successor()?;
        }
        if happened.predecessor {
            self.predecessors.retain(Connection::is_open);
        }
        self.report.log();
        Ok(true)
    }

    fn poll(&self, sources: &EventSources) -> nix::Result<Happened> {
        let (listener, successor, deadline) = match &self.role {
            Role::Serving {
                listener,
                successor: None,
            } => (Some(listener.as_fd()), None, None),
            Role::Serving {
                listener,
                successor: Some((successor, until)),
            } => (
                Some(listener.as_fd()),
                Some(successor.as_fd()),
                Some(*until),
            ),
            Role::Standby { successor } => (None, Some(successor.as_fd()), None),
        };
        let [signals, changes, ended] = sources.descriptors();
        let groups = [
            vec![signals],
            vec![changes],
            vec![ended],
            listener.into_iter().collect(),
            successor.into_iter().collect(),
            self.predecessors.iter().map(AsFd::as_fd).collect(),
        ];
        // Now and then in any case, to show that the loop comes round.
        let beat = Instant::now() + HEARTBEAT_INTERVAL;
        let until = deadline.map_or(beat, |deadline| deadline.min(beat));
        let until = until.min(self.look_at);
        let [signal, change, ended, listener, successor, predecessor] = readable(groups, until)?;
        Ok(Happened {
            signal,
            change,
            ended,
            listener,
            successor,
            predecessor,
        })
    }

    /// Makes everything as the configuration says. While a successor is about to serve, both would open what is new and
    /// one would keep it unread, so that waits.
    fn follow(&mut self) {
        match RelayConfig::read(&self.dir) {
            Ok(config) => {
                if self.bad.take().is_some() {
                    info!("configuration is valid again");
                }
                match &self.role {
                    Role::Serving {
                        successor: Some(_), ..
                    } => {}
                    Role::Serving {
                        successor: None, ..
                    } => self.relay.apply(&config),
                    Role::Standby { .. } => self.relay.close_changed(&config),
                }
            }
            Err(error) => {
                let bad = error_chain(&error);
                if self.bad.as_ref() != Some(&bad) {
                    warn!(
                        error = bad,
                        "configuration is invalid, keeping the last valid one"
                    );
                }
                self.bad = Some(bad);
            }
        }
        self.look_at = next_look(&self.relay, self.bad.as_ref());
    }

    /// Answers new connections.
    fn answer(&mut self) {
        let Role::Serving {
            listener,
            successor,
        } = &mut self.role
        else {
            return;
        };
        let answered = listener.accept().and_then(|connection| {
            let Some(connection) = connection else {
                return Ok(());
            };
            match connection.hear()? {
                Some((Message::Ready, _)) => {
                    let failures = self
                        .bad
                        .iter()
                        .cloned()
                        .chain(self.relay.failures())
                        .collect();
                    connection.say(&Message::Readiness { failures })
                }
                Some((Message::Watch, _)) if self.predecessors.len() < PREDECESSORS => {
                    self.predecessors.push(connection);
                    Ok(())
                }
                Some((Message::TakeOver { version: VERSION }, _)) if successor.is_none() => {
                    takeover::offer(&connection, &self.relay)?;
                    *successor = Some((connection, Instant::now() + HAND_OVER));
                    Ok(())
                }
                Some((other, _)) => {
                    let reason = format!(
                        "the relay that serves refuses {other:?}: it cannot do that, or not now"
                    );
                    connection.say(&Message::Refused { reason })
                }
                None => Ok(()),
            }
        });
        if let Err(error) = answered {
            warn!(%error, "answering request failed");
        }
    }

    fn is_too_slow(&self) -> bool {
        matches!(&self.role, Role::Serving { successor: Some((_, until)), .. } if Instant::now() >= *until)
    }

    /// The successor serves, or has ended, or takes too long.
    fn hear_successor(&mut self) -> anyhow::Result<()> {
        let too_slow = self.is_too_slow();
        match &mut self.role {
            Role::Serving { successor, .. } => {
                let Some((connection, _)) = successor.take() else {
                    return Ok(());
                };
                let heard = if too_slow {
                    Ok(None)
                } else {
                    connection.hear()
                };
                if matches!(heard, Ok(Some((Message::Serving, _)))) {
                    self.stand_by(connection);
                } else {
                    warn!(?heard, "takeover failed, serving on");
                    self.follow();
                }
                Ok(())
            }
            Role::Standby { successor } => {
                if successor.is_open() {
                    return Ok(());
                }
                self.resume()
            }
        }
    }

    fn stand_by(&mut self, successor: Connection) {
        self.relay.stop();
        self.metrics.serving(false);
        info!("successor serves, standing by");
        if let Err(error) = successor.say(&Message::Stopped) {
            // Then it has ended, which is seen next.
            warn!(%error, "notifying successor failed");
        }
        self.role = Role::Standby { successor };
    }

    /// Serves again, unless another relay serves.
    fn resume(&mut self) -> anyhow::Result<()> {
        if let Ok(Some(other)) = Connection::open(&self.dir)
            && other.say(&Message::Watch).is_ok()
        {
            info!("successor exited and another relay serves, standing by");
            self.role = Role::Standby { successor: other };
            return Ok(());
        }
        warn!("successor exited, serving again");
        let listener = Listener::bind(&self.dir).context("listen for other relays")?;
        self.role = Role::Serving {
            listener,
            successor: None,
        };
        self.metrics.serving(true);
        self.follow();
        Ok(())
    }
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "one for each thing that can happen"
)]
struct Happened {
    signal: bool,
    change: bool,
    ended: bool,
    listener: bool,
    successor: bool,
    predecessor: bool,
}

fn next_look(relay: &Relay, bad: Option<&String>) -> Instant {
    let well = relay.failures().is_empty() && bad.is_none();
    Instant::now() + if well { REREAD } else { RETRY }
}
