//! The task that applies the configuration of BIRD and observes the sessions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use netweft_crds::{SessionFault, SessionState, SessionStatus};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::bird::SOCKET;
use crate::bird::control::{Control, ControlError};
use crate::bird::file::File;
use crate::bird::password_files::{PasswordError, passwords};
use crate::bird::protocols;
use crate::bird::protocols::Seen;
use crate::bird::session_history::SessionHistory;
use crate::bird::session_status;
use crate::desired::bird::password::Password;
use crate::desired::bird::{Bird, BirdSession, IDLE, Taken};
use crate::status::cause::Cause;
use crate::status::problem::{Problem, Problems};
use netweft_common::error_chain;

/// How often BIRD is asked.
const POLL: Duration = Duration::from_secs(2);
/// How many of the prefixes that are not taken are named.
const MAX_LISTED: usize = 3;
/// Enough lines to find them in: a heading, and a few for each.
const LINES: usize = 4 * MAX_LISTED + 1;

/// Places on this node.
#[derive(Clone, Debug)]
pub struct Places {
    /// Configuration and control socket.
    pub dir: PathBuf,
    /// The program that checks the configuration, and its first arguments.
    pub program: Vec<String>,
    /// Passwords, a file for each key.
    pub passwords: PathBuf,
}

/// What the reconciler wants.
#[derive(Clone, Debug, PartialEq)]
struct Order {
    /// `None`: BGP is off.
    bird: Option<Bird>,
    /// Addresses of nodes.
    nodes: Vec<IpAddr>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The sessions that are wanted, in the operator's order.
    pub sessions: Vec<SessionStatus>,
    /// Why BIRD does not do what is wanted.
    pub problems: Problems,
    /// Whether BIRD has nothing to do with the kernel's routes any more: it idles, or there is none.
    pub released: bool,
    /// Whether there is none, while one is wanted.
    pub absent: bool,
    /// How many have been met, one after the other.
    pub met: u64,
}

/// The reconciler's end.
pub struct Link {
    orders: watch::Sender<Option<Order>>,
    observed: watch::Receiver<Observed>,
}

impl Link {
    /// Says what is wanted.
    pub fn set(&self, bird: Option<Bird>, nodes: Vec<IpAddr>) {
        let order = Some(Order { bird, nodes });
        self.orders.send_if_modified(|known| {
            let news = *known != order;
            if news {
                *known = order;
            }
            news
        });
    }

    /// A link without a watcher, and what stands for it.
    #[cfg(test)]
    pub fn alone() -> (Self, watch::Sender<Observed>) {
        let (orders, _) = watch::channel(None);
        let (sender, observed) = watch::channel(Observed::default());
        (Self { orders, observed }, sender)
    }

    /// The last observation.
    #[cfg(test)]
    pub fn wanted(&self) -> Option<Bird> {
        self.orders.borrow().clone()?.bird
    }

    /// What was found last.
    #[must_use]
    pub fn observed(&self) -> Observed {
        self.observed.borrow().clone()
    }

    /// Reports each change of the observation.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Observed> {
        self.observed.clone()
    }
}

/// The task's end.
pub struct Watcher {
    orders: watch::Receiver<Option<Order>>,
    observed: watch::Sender<Observed>,
    places: Places,
    file: File,
    /// The conversation with the BIRD that was met last, as long as it lives.
    line: Option<Control>,
    met: u64,
    /// The text that BIRD has taken, as far as we know.
    taken: Option<String>,
    /// What each session has been through.
    histories: BTreeMap<String, SessionHistory>,
    /// Which prefixes are not taken, by session, and how many there were when that was asked.
    refused: BTreeMap<String, (i64, String)>,
}

impl Watcher {
    /// A watcher that has seen nothing, and the link to it.
    #[must_use]
    pub fn new(places: Places) -> (Self, Link) {
        let (sender, orders) = watch::channel(None);
        let (observed, receiver) = watch::channel(Observed::default());
        let watcher = Self {
            orders,
            observed,
            file: File::new(&places.dir, &places.program),
            places,
            line: None,
            met: 0,
            taken: None,
            histories: BTreeMap::new(),
            refused: BTreeMap::new(),
        };
        let link = Link {
            orders: sender,
            observed: receiver,
        };
        (watcher, link)
    }

    /// Runs until the reconciler has ended.
    pub async fn run(mut self) {
        if let Err(error) = self.file.make_folder() {
            warn!(dir = %self.places.dir.display(), %error, "creating BIRD directory failed");
        }
        loop {
            let order = self.orders.borrow_and_update().clone();
            let mut busy = false;
            if let Some(order) = order {
                let observed = self.observe(&order).await;
                busy = order.bird.is_some() || !observed.released;
                self.publish(observed);
            }
            tokio::select! {
                changed = self.orders.changed() => if changed.is_err() { return },
                () = ended(&mut self.line) => {}
                () = sleep(POLL), if busy => {}
            }
        }
    }

    fn publish(&self, found: Observed) {
        self.observed.send_if_modified(|known| {
            let news = *known != found;
            if news {
                *known = found;
            }
            news
        });
    }

    async fn observe(&mut self, order: &Order) -> Observed {
        let Some(bird) = &order.bird else {
            return self.idle().await;
        };
        let passwords = passwords(bird, &self.places.passwords);
        let good = passwords.iter();
        let good = good.filter_map(|(key, read)| Some((key.clone(), read.as_ref().ok()?.clone())));
        let good: BTreeMap<String, Password> = good.collect();
        let (problem, seen) = self.carry_out(&bird.render(&good)).await;
        let mask = |text: String| good.values().fold(text, |text, word| word.mask(&text));
        let refused = match &seen {
            Ok(seen) => self.refused(seen, bird, &order.nodes).await,
            Err(_) => BTreeMap::new(),
        };
        Observed {
            sessions: self.sessions(bird, &passwords, &seen, &refused),
            problems: problem.map(mask).map(bird_problem).into_iter().collect(),
            released: false,
            absent: seen.is_err(),
            met: self.met,
        }
    }

    /// BGP is off: BIRD gets a configuration without sessions.
    async fn idle(&mut self) -> Observed {
        let mut observed = Observed {
            released: true,
            met: self.met,
            ..Observed::default()
        };
        self.histories.clear();
        self.refused.clear();
        if self.file.exists() {
            let (problem, seen) = self.carry_out(IDLE).await;
            let absent = matches!(seen, Err(ControlError::Absent(_)));
            observed.released =
                problem.is_none() && (absent || self.taken.as_deref() == Some(IDLE));
            observed.problems.extend(problem.map(bird_problem));
        }
        observed
    }

    /// Applies the configuration if BIRD does not have it yet, and reads the sessions. Returns the failure, if any.
    async fn carry_out(
        &mut self,
        text: &str,
    ) -> (Option<String>, Result<BTreeMap<String, Seen>, ControlError>) {
        let mut problem = match self.file.put(text).await {
            Ok(_) => None,
            Err(error) => Some(error_chain(&error)),
        };
        let socket = self.places.dir.join(SOCKET);
        let seen = async {
            let mut control = match self.line.take() {
                Some(line) => line,
                None => {
                    let control = Control::connect(&socket).await?;
                    // A new BIRD does not know the configuration of its predecessor.
                    self.taken = None;
                    self.met += 1;
                    control
                }
            };
            if problem.is_none() && self.taken.as_deref() != Some(text) {
                problem = configure(&mut control).await?;
                if problem.is_none() {
                    self.taken = Some(text.to_owned());
                }
            }
            // A moment as a number, wherever the node's clock thinks it is.
            control.ask("timeformat \"%s\"").await?;
            let reply = control.ask("show protocols all").await?;
            self.line = Some(control);
            Ok(protocols::sessions(&reply))
        };
        let seen = seen.await;
        (problem, seen)
    }

    /// Names some of the prefixes that sessions do not take, asking again only where their number has changed.
    async fn refused(
        &mut self,
        seen: &BTreeMap<String, Seen>,
        bird: &Bird,
        nodes: &[IpAddr],
    ) -> BTreeMap<String, String> {
        let mut named = BTreeMap::new();
        for BirdSession { protocol, .. } in &bird.sessions {
            let Some(seen) = seen.get(protocol).filter(|seen| seen.filtered > 0) else {
                continue;
            };
            let known = self.refused.remove(protocol);
            let known = match known.filter(|(count, _)| *count == seen.filtered) {
                Some(known) => known,
                None => {
                    let words = self.name_refused(protocol, &bird.taken, nodes).await;
                    (seen.filtered, words)
                }
            };
            named.insert(protocol.clone(), known);
        }
        self.refused = named;
        let words = self.refused.iter();
        words
            .map(|(name, (_, words))| (name.clone(), words.clone()))
            .collect()
    }

    async fn name_refused(&self, protocol: &str, taken: &Taken, nodes: &[IpAddr]) -> String {
        let asked = async {
            let control = Control::connect(&self.places.dir.join(SOCKET)).await?;
            let command = format!("show route filtered protocol '{protocol}'");
            control.ask_briefly(&command, LINES).await
        };
        let Ok(reply) = asked.await else {
            return String::new();
        };
        let first =
            |line: &crate::bird::reply::Line| line.text.split(' ').next()?.parse::<IpNet>().ok();
        let prefixes = reply.lines.iter().filter_map(first).take(MAX_LISTED);
        let named: Vec<String> = prefixes
            .map(|net| format!("{net} ({})", session_status::why_refused(net, taken, nodes)))
            .collect();
        if named.is_empty() {
            return String::new();
        }
        format!(", among them {}", named.join(", "))
    }

    fn sessions(
        &mut self,
        bird: &Bird,
        passwords: &BTreeMap<String, Result<Password, PasswordError>>,
        seen: &Result<BTreeMap<String, Seen>, ControlError>,
        refused: &BTreeMap<String, String>,
    ) -> Vec<SessionStatus> {
        let before = self.observed.borrow().sessions.clone();
        let mut histories = BTreeMap::new();
        let mut told = Vec::new();
        for BirdSession {
            session, protocol, ..
        } in &bird.sessions
        {
            let password = session
                .password_key
                .as_ref()
                .and_then(|key| passwords.get(key));
            let status = match (password, seen) {
                (Some(Err(why)), _) => session_status::absent(
                    session,
                    Some((SessionFault::PasswordMissing, why.to_string())),
                ),
                (_, Err(error)) => session_status::absent(
                    session,
                    Some((SessionFault::BIRDUnavailable, no_bird(error))),
                ),
                (_, Ok(seen)) => match seen.get(protocol) {
                    None => session_status::absent(session, None),
                    Some(seen) => {
                        let history = self.histories.remove(protocol);
                        let history = SessionHistory::after(history, session, seen, Instant::now());
                        let refused = refused.get(protocol).map_or("", String::as_str);
                        let status = session_status::status(
                            session,
                            &history.recall(seen),
                            history.stuck(),
                            refused,
                        );
                        histories.insert(protocol.clone(), history);
                        status
                    }
                },
            };
            let known = before.iter().find(|known| known.name == status.name);
            let status = session_status::settle(known, status);
            log_change(known, &status);
            told.push(status);
        }
        self.histories = histories;
        told
    }
}

fn log_change(known: Option<&SessionStatus>, status: &SessionStatus) {
    let established = |status: &SessionStatus| status.state == SessionState::Established;
    let SessionStatus {
        name,
        peer,
        state,
        message,
        ..
    } = status;
    let was = known.is_some_and(established);
    if was != established(status) || known.is_some_and(|known| known.fault != status.fault) {
        info!(session = %name, %peer, ?state, reason = %message, "BGP session changed");
    }
}

/// BIRD does not run with the configuration, for this reason.
fn bird_problem(error: String) -> Problem {
    Problem::from(Cause::Bird { error })
}

/// Waits until the BIRD that was met last has ended.
async fn ended(line: &mut Option<Control>) {
    match line {
        Some(control) => control.ended().await,
        None => std::future::pending().await,
    }
    *line = None;
}

/// Tells BIRD to read its configuration. Returns why it did not take it.
///
/// # Errors
/// There was no answer.
async fn configure(control: &mut Control) -> Result<Option<String>, ControlError> {
    /// `Reconfiguration ignored, shutting down`
    const ENDING: u16 = 6;
    let reply = control.ask("configure").await?;
    let ending = reply.lines.iter().any(|line| line.code == ENDING);
    if ending {
        return Ok(Some("BIRD is ending and takes no configuration".to_owned()));
    }
    let refusal = reply.refusal();
    if refusal.is_none() {
        info!("BIRD applied its configuration");
    }
    Ok(refusal
        .map(|words| format!("BIRD refuses its configuration, so it keeps the last one: {words}")))
}

fn no_bird(error: &ControlError) -> String {
    format!(
        "no BIRD answers on this node ({}): see whether its pod runs here (chart value bird.enabled)",
        error_chain(error)
    )
}
