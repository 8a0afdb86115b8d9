//! Detects firewalls of other programs that drop packets of pods: a container engine or `ufw` sets the policy of the forward hook to
//! drop, and the tables of netweft cannot overrule that (an `accept` ends one base chain only, see nft(8), "VERDICT STATEMENT").
//!
//! ```text
//!   nft -j list chains ─▶ base chains at hook forward ─▶ nft -j list table ─▶ verdict for a pod's packet ─┐
//!   /proc/net/ip_tables_names ─▶ legacy iptables in use?                                                 ├─▶ suspicious? ─▶ probe ─▶ findings
//! ```
//!
//! The ruleset is read once a minute, outside the reconcile loop. The evaluation treats a rule with unknown matches as if it did not match,
//! and rules of legacy iptables are not in the ruleset of nft. A probe therefore decides about packets from pods (`probe`).

pub mod probe;
pub mod ruleset;

use std::path::Path;
use std::time::Duration;

use netweft_common::error_chain;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::apply::nft;
use crate::apply::nft::NftError;
use crate::apply::sysctl::Parameters;
use crate::commands::args::Paths;
use crate::firewall::probe::{Outcome, Prober};
use crate::firewall::ruleset::{BaseChain, Dropped, DropsPods, Rules, RulesetError};
use crate::status::cause::Cause;
use crate::status::problem::{Problem, ProblemKind, Problems};
use crate::telemetry::failure_log::FailureLog;

pub use crate::firewall::probe::Targets;

/// Interval at which the ruleset is read.
const PERIOD: Duration = Duration::from_secs(60);
/// Names of the tables of legacy iptables that are in use in this network namespace.
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";

/// The reconciler's handle to the task.
pub struct FirewallHandle {
    findings: watch::Receiver<Problems>,
    targets: watch::Sender<Targets>,
}

impl FirewallHandle {
    /// The last findings: a foreign object if a probe was dropped, so that packets of pods are not forwarded; a note if only the evaluation
    /// of the ruleset results in a drop.
    #[must_use]
    pub fn findings(&self) -> Problems {
        self.findings.borrow().clone()
    }

    /// Reports each change of the findings.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Problems> {
        self.findings.clone()
    }

    /// Sets the targets of probes.
    pub fn probe(&self, targets: Targets) {
        self.targets.send_if_modified(|current| {
            let changed = *current != targets;
            *current = targets;
            changed
        });
    }
}

/// The task.
pub struct Firewall {
    findings: watch::Sender<Problems>,
    targets: watch::Receiver<Targets>,
    prober: Prober,
    failure_log: FailureLog,
}

/// The result of one reading.
#[derive(Debug, Default)]
struct Reading {
    /// Chains that drop packets of pods, as far as their rules are known.
    chains: Vec<(BaseChain, Dropped)>,
    /// Whether legacy iptables has a table `filter`.
    legacy: bool,
}

/// Why the check failed.
#[derive(Debug, thiserror::Error)]
enum FirewallError {
    /// nft cannot list the ruleset.
    #[error(transparent)]
    List(#[from] NftError),
    /// The output of nft cannot be parsed.
    #[error(transparent)]
    Parse(#[from] RulesetError),
    /// The links of the probe cannot be created, used or removed.
    #[error("{0:#}")]
    Probe(anyhow::Error),
}

impl Firewall {
    /// A task, and its handle.
    #[must_use]
    pub fn new(paths: &Paths) -> (Self, FirewallHandle) {
        let (findings, found) = watch::channel(Problems::default());
        let (order, targets) = watch::channel(Targets::default());
        let firewall = Self {
            findings,
            targets,
            prober: Prober::new(paths.sysctl_dir.clone(), Parameters::new(paths)),
            failure_log: FailureLog::default(),
        };
        let link = FirewallHandle {
            findings: found,
            targets: order,
        };
        (firewall, link)
    }

    /// Reads the ruleset immediately and then once a minute.
    pub async fn run(mut self) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // There is no target at first.
        let mut without_target = true;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = self.targets.changed(), if without_target => {}
            }
            let targets = self.targets.borrow_and_update().clone();
            without_target = targets.from.is_none() || targets.to.is_empty();
            match self.check(&targets).await {
                Ok(found) => {
                    self.failure_log.set([]);
                    self.findings.send_if_modified(|findings| {
                        let changed = *findings != found;
                        *findings = found;
                        changed
                    });
                }
                Err(error) => {
                    let why = error_chain(&error);
                    self.failure_log
                        .set([format!("detect firewalls that drop packets of pods: {why}")]);
                }
            }
        }
    }

    async fn check(&mut self, targets: &Targets) -> Result<Problems, FirewallError> {
        let reading = read().await?;
        let outcome = if reading.is_suspicious() {
            self.prober.probe(targets).await
        } else {
            let removed = self.prober.remove_links().await;
            removed.map(|()| Outcome::Unknown)
        };
        Ok(reading.findings(outcome.map_err(FirewallError::Probe)?))
    }
}

impl Reading {
    /// Whether packets that pods send may be dropped.
    fn is_suspicious(&self) -> bool {
        self.legacy
            || self
                .chains
                .iter()
                .any(|(chain, dropped)| drops_sent(chain, *dropped))
    }

    fn findings(&self, outcome: Outcome) -> Problems {
        let mut findings = Problems::default();
        for (chain, dropped) in &self.chains {
            let (kind, certain) = match outcome {
                Outcome::Dropped if drops_sent(chain, *dropped) => {
                    (ProblemKind::ForeignObject, true)
                }
                Outcome::Forwarded if drops_sent(chain, *dropped) && !dropped.to_pods => continue,
                _ => (ProblemKind::Note, false),
            };
            let drops = DropsPods {
                chain: chain.clone(),
                certain,
            };
            findings.push(Problem::new(kind, chain, &drops));
        }
        if outcome == Outcome::Dropped && !findings.has(ProblemKind::ForeignObject) {
            findings.push(Problem::from(Cause::DroppedByLegacyIptables));
        }
        findings
    }
}

/// Whether the result of the probe applies to the chain.
fn drops_sent(chain: &BaseChain, dropped: Dropped) -> bool {
    dropped.from_pods && chain.family != "ip6"
}

/// The chains that drop packets of pods.
async fn read() -> Result<Reading, FirewallError> {
    let chains = nft::list_json(&["list", "chains"]).await?;
    let chains = BaseChain::at_forward(&chains)?;
    let mut reading = Reading {
        legacy: has_legacy_filter(Path::new(LEGACY_TABLES)),
        ..Reading::default()
    };
    for base in chains {
        // First the chain alone: the table of kube-proxy is large, and its chain at the forward hook drops nothing itself.
        let [family, table, name] = [&base.family, &base.table, &base.name].map(String::as_str);
        let drops = async |what: &[&str]| {
            let listed = nft::list_json(what).await?;
            Ok::<_, FirewallError>(Rules::parse(&listed)?.dropped(&base))
        };
        if drops(&["list", "chain", family, table, name]).await? != Dropped::default() {
            let dropped = drops(&["list", "table", family, table]).await?;
            if dropped != Dropped::default() {
                reading.chains.push((base, dropped));
            }
        }
    }
    reading
        .chains
        .sort_by_cached_key(|(chain, _)| chain.to_string());
    Ok(reading)
}

/// Whether legacy iptables has a table `filter`. A kernel without it has no such file.
fn has_legacy_filter(tables: &Path) -> bool {
    std::fs::read_to_string(tables).is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(family: &str, from_pods: bool, to_pods: bool, legacy: bool) -> Reading {
        let chain = BaseChain::new(family, "filter", "FORWARD");
        let dropped = Dropped { from_pods, to_pods };
        let chains = if dropped == Dropped::default() {
            vec![]
        } else {
            vec![(chain, dropped)]
        };
        Reading { chains, legacy }
    }

    /// Number of findings: certain, suspected.
    fn found(reading: &Reading, outcome: Outcome) -> (usize, usize) {
        let findings = reading.findings(outcome);
        let count = |kind| findings.of(kind).count();
        (count(ProblemKind::ForeignObject), count(ProblemKind::Note))
    }

    #[test]
    fn firewall_probe_outcome_overrides_egress_finding() {
        let both = reading("ip", true, true, false);
        let sent = reading("ip", true, false, false);
        let received = reading("ip", false, true, false);
        assert!(both.is_suspicious() && sent.is_suspicious() && !received.is_suspicious());
        for (reading, outcome, expected) in [
            (&both, Outcome::Dropped, (1, 0)),
            (&both, Outcome::Forwarded, (0, 1)),
            (&both, Outcome::Unknown, (0, 1)),
            (&sent, Outcome::Dropped, (1, 0)),
            (&sent, Outcome::Forwarded, (0, 0)),
            (&sent, Outcome::Unknown, (0, 1)),
            (&received, Outcome::Unknown, (0, 1)),
        ] {
            assert_eq!(found(reading, outcome), expected, "{reading:?} {outcome:?}");
        }
    }

    #[test]
    fn firewall_probe_has_no_effect_on_ipv6_finding() {
        let reading = reading("ip6", true, true, false);
        assert!(!reading.is_suspicious());
        assert_eq!(found(&reading, Outcome::Unknown), (0, 1));
    }

    #[test]
    fn dropped_probe_without_known_chain_names_legacy_iptables() {
        let reading = reading("ip", false, false, true);
        assert!(reading.is_suspicious());
        assert_eq!(found(&reading, Outcome::Forwarded), (0, 0));
        assert_eq!(found(&reading, Outcome::Unknown), (0, 0));
        let findings = reading.findings(Outcome::Dropped);
        let dropped = findings.messages(ProblemKind::ForeignObject);
        assert!(dropped[0].contains("`iptables-legacy -I FORWARD -i nw+ -j ACCEPT`"));
    }

    #[test]
    fn legacy_filter_table_is_detected_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("names");
        assert!(!has_legacy_filter(&file));
        std::fs::write(&file, "nat\nraw\n").unwrap();
        assert!(!has_legacy_filter(&file));
        std::fs::write(&file, "nat\nfilter\n").unwrap();
        assert!(has_legacy_filter(&file));
    }
}
