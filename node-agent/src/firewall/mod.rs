//! Firewalls of others that drop what pods send or receive: a container engine or `ufw` sets the policy of the forward hook to
//! drop, and nothing in netweft's own table can overrule that (an `accept` ends one base chain only, see nft(8), "VERDICT STATEMENT").
//!
//! ```text
//!   nft -j list chains ─▶ base chains at hook forward ─▶ nft -j list table ─▶ verdict for a pod's packet ─▶ sentences
//! ```
//!
//! The ruleset is read once a minute, beside the loop that programs the kernel. Rules of the legacy iptables are not in it.

mod ruleset;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::apply::nft;
use crate::firewall::ruleset::{BaseChain, Rules};
use crate::telemetry::failure_log::FailureLog;
use netweft_common::error_chain;

/// Pause between two readings.
const PERIOD: Duration = Duration::from_secs(60);

/// Where the reconciler reads what was found.
pub type Findings = watch::Receiver<Vec<String>>;

/// The task that reads the ruleset.
pub struct Firewall {
    findings: watch::Sender<Vec<String>>,
    failure_log: FailureLog,
}

impl Firewall {
    /// A task that has read nothing yet, and where its findings will be.
    #[must_use]
    pub fn new() -> (Self, Findings) {
        let (sender, findings) = watch::channel(Vec::new());
        let firewall = Self {
            findings: sender,
            failure_log: FailureLog::default(),
        };
        (firewall, findings)
    }

    /// Reads the ruleset at once and then once a minute, as long as the process lives.
    pub async fn run(mut self) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match read().await {
                Ok(found) => {
                    self.failure_log.are([]);
                    self.findings.send_if_modified(|findings| {
                        let changed = *findings != found;
                        *findings = found;
                        changed
                    });
                }
                Err(why) => self
                    .failure_log
                    .are([format!("read the firewall's ruleset: {why}")]),
            }
        }
    }
}

/// The chains that drop packets of pods, in sentences.
async fn read() -> Result<Vec<String>, String> {
    let chains = nft::list_json(&["list", "chains"]).await;
    let chains = BaseChain::at_forward(&chains.map_err(|error| error_chain(&error))?)?;
    let mut found = BTreeSet::new();
    for base in chains {
        // The chain by itself first: the table of kube-proxy is large, and its chain at the forward hook drops nothing by itself.
        let [family, table, name] = [&base.family, &base.table, &base.name].map(String::as_str);
        let drops = async |what: &[&str]| {
            let listed = nft::list_json(what)
                .await
                .map_err(|error| error_chain(&error))?;
            Ok::<_, String>(Rules::parse(&listed)?.drops_pods(&base))
        };
        if drops(&["list", "chain", family, table, name]).await?
            && drops(&["list", "table", family, table]).await?
        {
            found.insert(base.sentence());
        }
    }
    Ok(found.into_iter().collect())
}
