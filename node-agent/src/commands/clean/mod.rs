//! `netweft-agent clean`: removes everything of netweft from this node.
//!
//! ```text
//!   agent, BIRD, relay, pods? ─▶ any: report, change nothing
//!                            └─▶ none: CNI configuration ─▶ kernel ─▶ nft table ─▶ sysctls ─▶ plugins ─▶ run directory
//! ```
//!
//! Objects of netweft are identified by the kernel and the files alone, without the API server. Everything stays while pods have
//! addresses of netweft, unless it is forced. The command can be stopped and repeated at any point. It reports a clean node only
//! after a check.

mod files;
mod host_ports;
mod kernel_objects;
mod pods;
mod processes;
mod sysctls;

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::rtnl::Rtnl;
use tokio::time::timeout;

use crate::apply::nft::{Change, Nft, TableFamily};
use crate::commands::args::CleanArgs;
use crate::commands::clean::files::Files;
use crate::commands::clean::kernel_objects::deletions;
use crate::commands::instance_lock::InstanceLock;
use crate::commands::run::stop_signal;

/// Interval of the attempts while pods or programs prevent the cleaning.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How long the lock of an agent that has just ended can persist: a child has it until it executes its program.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Exit code if the node is not clean.
const NOT_CLEAN: u8 = 1;

/// Cleans, or prints what would be removed.
///
/// # Errors
/// The state of the node cannot be read, or something cannot be removed.
pub async fn run(args: &CleanArgs) -> anyhow::Result<ExitCode> {
    let cleaner = Cleaner::new(args)?;
    if args.dry_run {
        let remaining = cleaner.remaining().await?;
        for line in &remaining {
            println!("{line}");
        }
        return Ok(code(remaining.is_empty()));
    }
    if !args.stay {
        let outcome = cleaner.clean().await?;
        println!("{outcome}");
        return Ok(code(outcome.is_clean()));
    }
    tokio::select! {
        () = cleaner.clean_and_stay() => {}
        () = stop_signal() => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn code(clean: bool) -> ExitCode {
    if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_CLEAN)
    }
}

/// The result of one attempt.
enum Outcome {
    /// The node is clean.
    Clean,
    /// Nothing was changed, for these reasons.
    Blocked(Vec<String>),
}

impl Outcome {
    fn is_clean(&self) -> bool {
        matches!(self, Self::Clean)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("Nothing of netweft is left on this node."),
            Self::Blocked(reasons) => f.write_str(&reasons.join("\n")),
        }
    }
}

struct Cleaner<'a> {
    args: &'a CleanArgs,
    kernel: Rtnl,
    tables: [Nft; 2],
    files: Files,
}

impl<'a> Cleaner<'a> {
    fn new(args: &'a CleanArgs) -> anyhow::Result<Self> {
        Ok(Self {
            args,
            kernel: Rtnl::new().context("open netlink")?,
            tables: TableFamily::ALL.map(|family| Nft::new(&args.paths.run_dir, family)),
            files: Files::new(args),
        })
    }

    /// Retries until the node is clean, prints each new reason once, and then never returns.
    async fn clean_and_stay(&self) {
        let mut printed = String::new();
        loop {
            let (text, clean) = match self.clean().await {
                Ok(outcome) => (outcome.to_string(), outcome.is_clean()),
                Err(error) => (format!("Cleaning failed, will retry: {error:#}"), false),
            };
            if text != printed {
                println!("{text}");
                printed = text;
            }
            if clean {
                return std::future::pending().await;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn clean(&self) -> anyhow::Result<Outcome> {
        let run_dir = &self.args.paths.run_dir;
        let lock = if run_dir.exists() {
            let Ok(lock) = timeout(LOCK_TIMEOUT, InstanceLock::acquire(run_dir)).await else {
                let reason = "An agent runs on this node: uninstall netweft first.";
                return Ok(Outcome::Blocked(vec![reason.to_owned()]));
            };
            Some(lock?)
        } else {
            None
        };
        let mut reasons = processes::running(run_dir);
        if reasons.is_empty() {
            reasons = pods::stop_new_pods(self.args, &self.kernel, &self.files).await?;
        }
        if !reasons.is_empty() {
            return Ok(Outcome::Blocked(reasons));
        }
        self.remove_all().await?;
        drop(lock);
        let remaining = self.remaining().await?;
        anyhow::ensure!(
            remaining.is_empty(),
            "not removed: {}",
            remaining.join("; ")
        );
        Ok(Outcome::Clean)
    }

    async fn remove_all(&self) -> anyhow::Result<()> {
        for op in deletions(&self.kernel.read().await?) {
            self.kernel.apply(&op).await?;
            println!("Applied: {op}.");
        }
        for table in &self.tables {
            if table.ensure("").await? == Change::Removed {
                println!("Removed {}.", table.family().title());
            }
        }
        host_ports::remove(&self.args.paths.cni_conf_dir).await?;
        sysctls::restore(&self.args.paths)?;
        self.files.remove_rest().context("remove files")
    }

    /// The objects of netweft on this node, one per line.
    async fn remaining(&self) -> anyhow::Result<Vec<String>> {
        let ops = deletions(&self.kernel.read().await?);
        let mut remaining: Vec<String> = ops.iter().map(|op| format!("To apply: {op}.")).collect();
        for table in &self.tables {
            if !table.is("").await? {
                remaining.push(format!("The {} exists.", table.family().title()));
            }
        }
        remaining.extend(host_ports::remaining(&self.args.paths.cni_conf_dir).await?);
        remaining.extend(sysctls::changed(&self.args.paths)?);
        remaining.extend(self.files.remaining()?);
        Ok(remaining)
    }
}
