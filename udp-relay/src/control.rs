//! The control loop: waits for events and handles them. This thread forwards no packets.
//!
//! A relay is serving or in standby. In standby its successor serves, and the relay keeps all tunnels open, so that it can serve
//! again at once if the successor exits.

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

/// Interval of reading the configuration without an inotify event, in case that an event was lost.
const REREAD_INTERVAL: Duration = Duration::from_secs(60);
/// Interval between attempts after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of a successor from its request until it serves.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of relays in standby. There is one usually, and two after a failure.
const MAX_PREDECESSORS: usize = 8;

/// The role of this relay among the relays of its node.
enum Role {
    /// The relay forwards packets.
    Serving {
        listener: Listener,
        /// The relay that has received the tunnels but does not serve yet, and its deadline.
        successor: Option<(Connection, Instant)>,
    },
    /// The successor forwards packets.
    Standby { successor: Connection },
}

/// The state of the control loop.
pub struct Control {
    dir: PathBuf,
    relay: Relay,
    role: Role,
    /// Relays in standby. They detect the exit of this relay by the end of the connection.
    predecessors: Vec<Connection>,
    /// Why the configuration is invalid.
    config_error: Option<String>,
    metrics: Metrics,
    report: Report,
    /// When the configuration is read again without an inotify event.
    next_read: Instant,
}

impl Control {
    /// Takes over from the serving relay, or serves without a predecessor.
    ///
    /// # Errors
    /// The serving relay does not hand its tunnels over, or the configuration is invalid while a predecessor serves. The predecessor
    /// continues to serve. Or the socket for other relays cannot be created.
    pub fn start(dir: PathBuf, mut relay: Relay, metrics: Metrics) -> anyhow::Result<Self> {
        let predecessor = takeover::request(&dir, &mut relay)
            .context("take over from the relay that serves on this node")?;
        let config = RelayConfig::read(&dir);
        let mut config_error = None;
        match config {
            Ok(config) => relay.apply(&config),
            // The predecessor continues to serve with its last valid configuration.
            Err(error) if predecessor.is_some() => return Err(error).context("take over"),
            Err(error) => config_error = Some(error_chain(&error)),
        }
        if let Some(predecessor) = &predecessor {
            takeover::confirm(predecessor);
        }
        if let Some(config_error) = &config_error {
            warn!(error = config_error, "configuration is invalid");
        }
        let listener = Listener::bind(&dir).context("listen for other relays")?;
        metrics.set_serving(true);
        info!(taken_over = predecessor.is_some(), "serving");
        Ok(Self {
            role: Role::Serving {
                listener,
                successor: None,
            },
            predecessors: predecessor.into_iter().collect(),
            next_read: next_read_time(&relay, config_error.as_ref()),
            report: Report::new(metrics.clone()),
            dir,
            relay,
            config_error,
            metrics,
        })
    }

    /// Waits for events and handles them. Returns `false` after a signal to stop.
    ///
    /// # Errors
    /// poll(2) fails, or the socket for other relays and probes cannot be created.
    pub fn wait(&mut self, sources: &EventSources) -> anyhow::Result<bool> {
        let events = self.poll(sources).context("wait")?;
        if events.signal {
            return Ok(false);
        }
        if events.ended {
            // With a delay: a permanent failure must not cause a busy loop.
            sources.clear_thread_end();
            self.next_read = self.next_read.min(Instant::now() + RETRY_INTERVAL);
        }
        if events.change && sources.has_config_change() || Instant::now() >= self.next_read {
            self.reload_config();
        }
        if events.listener {
            self.handle_connection();
        }
        if events.successor || self.has_successor_timed_out() {
            self.handle_successor()?;
        }
        if events.predecessor {
            self.predecessors.retain(Connection::is_open);
        }
        self.report.log();
        Ok(true)
    }

    fn poll(&self, sources: &EventSources) -> nix::Result<Events> {
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
        // A wake-up without an event, for the heartbeat.
        let beat = Instant::now() + HEARTBEAT_INTERVAL;
        let until = deadline.map_or(beat, |deadline| deadline.min(beat));
        let until = until.min(self.next_read);
        let [signal, change, ended, listener, successor, predecessor] = readable(groups, until)?;
        Ok(Events {
            signal,
            change,
            ended,
            listener,
            successor,
            predecessor,
        })
    }

    /// Reads and applies the configuration. During a handover the change is postponed: both relays would open a new tunnel, and one
    /// of them would not read its queue.
    fn reload_config(&mut self) {
        match RelayConfig::read(&self.dir) {
            Ok(config) => {
                if self.config_error.take().is_some() {
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
                let config_error = error_chain(&error);
                if self.config_error.as_ref() != Some(&config_error) {
                    warn!(
                        error = config_error,
                        "configuration is invalid, keeping the last valid one"
                    );
                }
                self.config_error = Some(config_error);
            }
        }
        self.next_read = next_read_time(&self.relay, self.config_error.as_ref());
    }

    /// Accepts a connection and answers its request.
    fn handle_connection(&mut self) {
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
            match connection.receive()? {
                Some((Message::Ready, _)) => {
                    let failures = self
                        .config_error
                        .iter()
                        .cloned()
                        .chain(self.relay.failures())
                        .collect();
                    connection.send(&Message::Readiness { failures })
                }
                Some((Message::Watch, _)) if self.predecessors.len() < MAX_PREDECESSORS => {
                    self.predecessors.push(connection);
                    Ok(())
                }
                Some((Message::TakeOver { version: VERSION }, _)) if successor.is_none() => {
                    takeover::offer(&connection, &self.relay)?;
                    *successor = Some((connection, Instant::now() + HANDOVER_TIMEOUT));
                    Ok(())
                }
                Some((other, _)) => {
                    let reason = format!(
                        "the serving relay refuses {other:?}: another handover is in progress, or the request is not supported"
                    );
                    connection.send(&Message::Refused { reason })
                }
                None => Ok(()),
            }
        });
        if let Err(error) = answered {
            warn!(%error, "answering request failed");
        }
    }

    fn has_successor_timed_out(&self) -> bool {
        matches!(&self.role, Role::Serving { successor: Some((_, until)), .. } if Instant::now() >= *until)
    }

    /// Handles a message of the successor, the end of its connection, or its timeout.
    fn handle_successor(&mut self) -> anyhow::Result<()> {
        let timed_out = self.has_successor_timed_out();
        match &mut self.role {
            Role::Serving { successor, .. } => {
                let Some((connection, _)) = successor.take() else {
                    return Ok(());
                };
                let received = if timed_out {
                    Ok(None)
                } else {
                    connection.receive()
                };
                if matches!(received, Ok(Some((Message::Serving, _)))) {
                    self.enter_standby(connection);
                } else {
                    warn!(?received, "takeover failed, serving on");
                    self.reload_config();
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

    fn enter_standby(&mut self, successor: Connection) {
        self.relay.stop();
        self.metrics.set_serving(false);
        info!("successor serves, standing by");
        if let Err(error) = successor.send(&Message::Stopped) {
            // The successor has exited. The next poll detects the end of the connection.
            warn!(%error, "notifying successor failed");
        }
        self.role = Role::Standby { successor };
    }

    /// Serves again, unless another relay serves.
    fn resume(&mut self) -> anyhow::Result<()> {
        if let Ok(Some(other)) = Connection::open(&self.dir)
            && other.send(&Message::Watch).is_ok()
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
        self.metrics.set_serving(true);
        self.reload_config();
        Ok(())
    }
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "one field for each kind of event"
)]
struct Events {
    signal: bool,
    change: bool,
    ended: bool,
    listener: bool,
    successor: bool,
    predecessor: bool,
}

fn next_read_time(relay: &Relay, config_error: Option<&String>) -> Instant {
    let has_failure = !relay.failures().is_empty() || config_error.is_some();
    Instant::now()
        + if has_failure {
            RETRY_INTERVAL
        } else {
            REREAD_INTERVAL
        }
}
