//! The task that applies the configuration of BIRD and observes its sessions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use netweft_common::error_chain;
use netweft_crds::{SessionFault, SessionState, SessionStatus};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::bird::config_file::ConfigFile;
use crate::bird::control_reply::ReplyLine;
use crate::bird::control_socket::{ControlConnection, ControlError};
use crate::bird::handle::{BirdHandle, Observation, Target};
use crate::bird::password_files::{PasswordError, passwords};
use crate::bird::session_history::SessionHistory;
use crate::bird::show_protocols::ObservedSession;
use crate::bird::{SOCKET, handle, rejected_prefixes, session_status, show_protocols};
use crate::desired::bird::password::Password;
use crate::desired::bird::{Bird, BirdSession, IDLE, ImportPolicy};
use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// Interval of the observations.
const POLL: Duration = Duration::from_secs(2);
/// Maximum number of rejected prefixes that a status names.
const MAX_LISTED: usize = 3;
/// Lines of BIRD's reply that contain them: a heading, and a few lines per prefix.
const LINES: usize = 4 * MAX_LISTED + 1;

/// Files and programs of BIRD on this node.
#[derive(Clone, Debug)]
pub struct BirdPaths {
    /// Directory of the configuration and the control socket.
    pub dir: PathBuf,
    /// The program that checks the configuration, and its first arguments.
    pub program: Vec<String>,
    /// Directory of the passwords, one file per key.
    pub passwords: PathBuf,
}

/// The task.
pub struct BirdTask {
    targets: watch::Receiver<Option<Target>>,
    observations: watch::Sender<Observation>,
    paths: BirdPaths,
    file: ConfigFile,
    /// The connection to BIRD, while BIRD runs.
    connection: Option<ControlConnection>,
    /// Number of connections so far.
    connection_count: u64,
    /// The configuration with which BIRD runs; `None`: unknown.
    applied_config: Option<String>,
    histories: BTreeMap<String, SessionHistory>,
    /// The rejected prefixes by session: their number, and a text that names some of them.
    rejected: BTreeMap<String, (i64, String)>,
}

impl BirdTask {
    /// The task before its first observation, and its handle.
    #[must_use]
    pub fn new(paths: BirdPaths) -> (Self, BirdHandle) {
        let (handle, targets, observations) = handle::channels();
        let task = Self {
            targets,
            observations,
            file: ConfigFile::new(&paths.dir, &paths.program),
            paths,
            connection: None,
            connection_count: 0,
            applied_config: None,
            histories: BTreeMap::new(),
            rejected: BTreeMap::new(),
        };
        (task, handle)
    }

    /// Runs until the reconciler has ended.
    pub async fn run(mut self) {
        if let Err(error) = self.file.create_dir() {
            warn!(dir = %self.paths.dir.display(), %error, "creating BIRD directory failed");
        }
        loop {
            let target = self.targets.borrow_and_update().clone();
            let mut poll = false;
            if let Some(target) = target {
                let observation = self.sync(&target).await;
                poll = target.bird.is_some() || !observation.released;
                self.publish(observation);
            }
            tokio::select! {
                changed = self.targets.changed() => if changed.is_err() { return },
                () = closed(&mut self.connection) => {}
                () = sleep(POLL), if poll => {}
            }
        }
    }

    fn publish(&self, observation: Observation) {
        self.observations.send_if_modified(|current| {
            let changed = *current != observation;
            if changed {
                *current = observation;
            }
            changed
        });
    }

    /// Applies the desired state and observes BIRD.
    async fn sync(&mut self, target: &Target) -> Observation {
        let Some(bird) = &target.bird else {
            return self.sync_idle().await;
        };
        let passwords = passwords(bird, &self.paths.passwords);
        let valid = passwords.iter();
        let valid = valid
            .filter_map(|(key, password)| Some((key.clone(), password.as_ref().ok()?.clone())));
        let valid: BTreeMap<String, Password> = valid.collect();
        let (problem, observed) = self.apply(&bird.render(&valid)).await;
        let mask = |text: String| valid.values().fold(text, |text, word| word.mask(&text));
        let rejected = match &observed {
            Ok(observed) => self.name_rejected(observed, target, bird).await,
            Err(_) => BTreeMap::new(),
        };
        Observation {
            sessions: self.session_statuses(bird, &passwords, &observed, &rejected),
            problems: problem.map(mask).map(bird_problem).into_iter().collect(),
            released: false,
            unavailable: observed.is_err(),
            connection: self.connection_count,
        }
    }

    /// BGP is off: BIRD gets a configuration without sessions.
    async fn sync_idle(&mut self) -> Observation {
        let mut observation = Observation {
            released: true,
            connection: self.connection_count,
            ..Observation::default()
        };
        self.histories.clear();
        self.rejected.clear();
        if self.file.exists() {
            let (problem, observed) = self.apply(IDLE).await;
            let is_stopped = matches!(observed, Err(ControlError::NotListening(_)));
            observation.released =
                problem.is_none() && (is_stopped || self.applied_config.as_deref() == Some(IDLE));
            observation.problems.extend(problem.map(bird_problem));
        }
        observation
    }

    /// Applies the configuration if BIRD does not run with it yet, and reads the sessions. Returns the failure, if any.
    async fn apply(
        &mut self,
        config: &str,
    ) -> (
        Option<String>,
        Result<BTreeMap<String, ObservedSession>, ControlError>,
    ) {
        let mut problem = match self.file.write(config).await {
            Ok(_) => None,
            Err(error) => Some(error_chain(&error)),
        };
        let socket = self.paths.dir.join(SOCKET);
        let observed = async {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => {
                    let connection = ControlConnection::open(&socket).await?;
                    // A new BIRD may run with another configuration than its predecessor.
                    self.applied_config = None;
                    self.connection_count += 1;
                    connection
                }
            };
            if problem.is_none() && self.applied_config.as_deref() != Some(config) {
                problem = configure(&mut connection).await?;
                if problem.is_none() {
                    self.applied_config = Some(config.to_owned());
                }
            }
            // Times as numbers, independent of the time zone.
            connection.command("timeformat \"%s\"").await?;
            let reply = connection.command("show protocols all").await?;
            self.connection = Some(connection);
            Ok(show_protocols::parse(&reply))
        };
        let observed = observed.await;
        (problem, observed)
    }

    /// A text per session that names some of its rejected prefixes. BIRD is queried only where their number has changed.
    async fn name_rejected(
        &mut self,
        observed: &BTreeMap<String, ObservedSession>,
        target: &Target,
        bird: &Bird,
    ) -> BTreeMap<String, String> {
        let mut rejected = BTreeMap::new();
        for BirdSession { protocol, .. } in &bird.sessions {
            let Some(session) = observed.get(protocol).filter(|it| it.filtered > 0) else {
                continue;
            };
            let known = self.rejected.remove(protocol);
            let known = match known.filter(|(count, _)| *count == session.filtered) {
                Some(known) => known,
                None => {
                    let addresses = &target.node_addresses;
                    let text = self
                        .query_rejected(protocol, &bird.import_policy, addresses)
                        .await;
                    (session.filtered, text)
                }
            };
            rejected.insert(protocol.clone(), known);
        }
        self.rejected = rejected;
        let rejected = self.rejected.iter();
        rejected
            .map(|(protocol, (_, text))| (protocol.clone(), text.clone()))
            .collect()
    }

    async fn query_rejected(
        &self,
        protocol: &str,
        policy: &ImportPolicy,
        node_addresses: &[IpAddr],
    ) -> String {
        let query = async {
            let connection = ControlConnection::open(&self.paths.dir.join(SOCKET)).await?;
            let command = format!("show route filtered protocol '{protocol}'");
            connection.command_head(&command, LINES).await
        };
        let Ok(reply) = query.await else {
            return String::new();
        };
        let prefix = |line: &ReplyLine| line.text.split(' ').next()?.parse::<IpNet>().ok();
        let prefixes = reply.lines.iter().filter_map(prefix).take(MAX_LISTED);
        let named: Vec<String> = prefixes
            .map(|net| {
                let reason = rejected_prefixes::reason(net, policy, node_addresses);
                format!("{net} ({reason})")
            })
            .collect();
        if named.is_empty() {
            return String::new();
        }
        format!(", among them {}", named.join(", "))
    }

    fn session_statuses(
        &mut self,
        bird: &Bird,
        passwords: &BTreeMap<String, Result<Password, PasswordError>>,
        observed: &Result<BTreeMap<String, ObservedSession>, ControlError>,
        rejected: &BTreeMap<String, String>,
    ) -> Vec<SessionStatus> {
        let previous = self.observations.borrow().sessions.clone();
        let mut histories = BTreeMap::new();
        let mut statuses = Vec::new();
        for BirdSession {
            session, protocol, ..
        } in &bird.sessions
        {
            let password = session
                .password_key
                .as_ref()
                .and_then(|key| passwords.get(key));
            let status = match (password, observed) {
                (Some(Err(error)), _) => session_status::not_configured(
                    session,
                    Some((SessionFault::PasswordMissing, error.to_string())),
                ),
                (_, Err(error)) => session_status::not_configured(
                    session,
                    Some((SessionFault::BIRDUnavailable, bird_unavailable(error))),
                ),
                (_, Ok(observed)) => match observed.get(protocol) {
                    None => session_status::not_configured(session, None),
                    Some(observed) => {
                        let history = self.histories.remove(protocol);
                        let history =
                            SessionHistory::next(history, session, observed, Instant::now());
                        let rejected = rejected.get(protocol).map_or("", String::as_str);
                        let status = session_status::status(
                            session,
                            &history.with_refusal(observed),
                            history.time_in_state(),
                            rejected,
                        );
                        histories.insert(protocol.clone(), history);
                        status
                    }
                },
            };
            let previous = previous.iter().find(|it| it.name == status.name);
            let status = session_status::suppress_flapping(previous, status);
            log_change(previous, &status);
            statuses.push(status);
        }
        self.histories = histories;
        statuses
    }
}

fn log_change(previous: Option<&SessionStatus>, status: &SessionStatus) {
    let is_up = |status: &SessionStatus| status.state == SessionState::Established;
    let SessionStatus {
        name,
        peer,
        state,
        message,
        ..
    } = status;
    let was_up = previous.is_some_and(is_up);
    if was_up != is_up(status) || previous.is_some_and(|previous| previous.fault != status.fault) {
        info!(session = %name, %peer, ?state, reason = %message, "BGP session changed");
    }
}

/// BIRD does not run with the desired configuration.
fn bird_problem(error: String) -> Problem {
    Problem::from(Cause::Bird { error })
}

/// Waits until BIRD has closed the connection.
async fn closed(connection: &mut Option<ControlConnection>) {
    match connection {
        Some(open) => open.closed().await,
        None => std::future::pending().await,
    }
    *connection = None;
}

/// Makes BIRD read its configuration. Returns why BIRD refuses it.
///
/// # Errors
/// There is no reply.
async fn configure(connection: &mut ControlConnection) -> Result<Option<String>, ControlError> {
    /// `Reconfiguration ignored, shutting down`
    const SHUTTING_DOWN: u16 = 6;
    let reply = connection.command("configure").await?;
    if reply.lines.iter().any(|line| line.code == SHUTTING_DOWN) {
        let problem = "BIRD is shutting down and accepts no configuration";
        return Ok(Some(problem.to_owned()));
    }
    let error = reply.error();
    if error.is_none() {
        info!("BIRD applied its configuration");
    }
    Ok(error
        .map(|error| format!("BIRD refuses its configuration, so it keeps the last one: {error}")))
}

fn bird_unavailable(error: &ControlError) -> String {
    format!(
        "no BIRD answers on this node ({}): see whether its pod runs here (chart value bird.enabled)",
        error_chain(error)
    )
}
