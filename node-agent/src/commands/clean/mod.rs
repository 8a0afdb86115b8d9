//! `netweft-agent clean`: takes all that is netweft's off this node.
//!
//! ```text
//!   agent, BIRD, relay, pods? ─▶ any: say so, change nothing
//!                            └─▶ none: runtime's configuration ─▶ kernel ─▶ nft table ─▶ parameters ─▶ plugins ─▶ run directory
//! ```
//!
//! What is ours is told from the kernel and the files alone, as everywhere: no API server is asked. Pods that have an address of
//! ours keep everything until they are gone, unless it is forced. It can be stopped and begun again at any point, and says that the
//! node is clean only after it has looked.

mod files;
mod host_ports;
mod pods;
mod processes;
mod remaining;
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
use crate::commands::instance_lock::InstanceLock;
use crate::commands::run::asked_to_stop;

use crate::commands::clean::files::Files;
use crate::commands::clean::remaining::leftovers;

/// How often to look while something has to go first.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How long an agent that has just ended can still seem to be there: a child that it was starting has its lock until it executes its program.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Exit code while something is in the way or left.
const NOT_CLEAN: u8 = 1;

/// Cleans, or says what there is to clean.
///
/// # Errors
/// The node cannot be looked at, or something cannot be taken away.
pub async fn run(args: &CleanArgs) -> anyhow::Result<ExitCode> {
    let cleaner = Cleaner::new(args)?;
    if args.dry_run {
        let left = cleaner.left().await?;
        for thing in &left {
            println!("{thing}");
        }
        return Ok(code(left.is_empty()));
    }
    if !args.stay {
        let outcome = cleaner.clean().await?;
        println!("{outcome}");
        return Ok(code(outcome.is_clean()));
    }
    tokio::select! {
        () = cleaner.stay() => {}
        () = asked_to_stop() => {}
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

/// What came of one attempt.
enum Outcome {
    /// Nothing is left.
    Clean,
    /// Nothing was changed, for these reasons.
    Waits(Vec<String>),
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
            Self::Waits(reasons) => f.write_str(&reasons.join("\n")),
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

    /// Cleans as soon as nothing is in the way, says each new reason once, and then stays.
    async fn stay(&self) {
        let mut said = String::new();
        loop {
            let (text, clean) = match self.clean().await {
                Ok(outcome) => (outcome.to_string(), outcome.is_clean()),
                Err(error) => (format!("Will try again: {error:#}"), false),
            };
            if text != said {
                println!("{text}");
                said = text;
            }
            if clean {
                return std::future::pending().await;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn clean(&self) -> anyhow::Result<Outcome> {
        let run_dir = &self.args.paths.run_dir;
        let alone = if run_dir.exists() {
            let Ok(alone) = timeout(LOCK_TIMEOUT, InstanceLock::acquire(run_dir)).await else {
                let reason = "An agent runs on this node: uninstall netweft first.";
                return Ok(Outcome::Waits(vec![reason.to_owned()]));
            };
            Some(alone?)
        } else {
            None
        };
        let mut reasons = processes::running(run_dir);
        if reasons.is_empty() {
            reasons = pods::close(self.args, &self.kernel, &self.files).await?;
        }
        if !reasons.is_empty() {
            return Ok(Outcome::Waits(reasons));
        }
        self.take_all().await?;
        drop(alone);
        let left = self.left().await?;
        anyhow::ensure!(left.is_empty(), "still there: {}", left.join("; "));
        Ok(Outcome::Clean)
    }

    async fn take_all(&self) -> anyhow::Result<()> {
        for op in leftovers(&self.kernel.read().await?) {
            self.kernel.apply(&op).await?;
            println!("Done: {op}.");
        }
        for table in &self.tables {
            if table.ensure("").await? == Change::Removed {
                println!("Done: {} removed.", table.family().title());
            }
        }
        host_ports::remove(&self.args.paths.cni_conf_dir).await?;
        sysctls::put_back(&self.args.paths)?;
        self.files.remove_rest().context("remove files")
    }

    /// What there is of netweft on this node, in sentences.
    async fn left(&self) -> anyhow::Result<Vec<String>> {
        let kernel = leftovers(&self.kernel.read().await?);
        let mut left: Vec<String> = kernel.iter().map(|op| format!("To do: {op}.")).collect();
        for table in &self.tables {
            if !table.is("").await? {
                left.push(format!("There is the {}.", table.family().title()));
            }
        }
        left.extend(host_ports::left(&self.args.paths.cni_conf_dir).await?);
        left.extend(sysctls::changed(&self.args.paths)?);
        left.extend(self.files.left()?);
        Ok(left)
    }
}
