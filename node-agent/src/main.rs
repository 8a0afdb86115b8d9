//! The node agent: programs the kernel of one node according to its NodeNetwork.
//!
//! ```text
//!   watches ─▶ Objects ─▶ Inputs ─────┐
//!                kernel ─▶ HostFacts ─┴─▶ desired ─▶ diff ─▶ apply ─▶ status
//! ```
//!
//! `desired`, `drift`, most of `inputs` and `status::problem` are pure. `inputs::source`, `reconcile`, `apply`, `pods`, `bird`,
//! `firewall`, `probes` and the publisher of `status` do I/O.

mod apply;
mod bird;
mod commands;
#[cfg(test)]
mod condition_texts;
mod desired;
mod drift;
mod firewall;
mod inputs;
#[cfg(test)]
#[path = "../../tests/mutated.rs"]
mod mutated;
mod pods;
mod probes;
mod reconcile;
mod status;
mod telemetry;
#[cfg(test)]
mod testing;

use std::process::ExitCode;

use clap::Parser;

use crate::commands::args::{Arguments, Command};
use crate::commands::{check, clean, install, run};

/// Exit code of `check` when the check failed. Lower exit codes are numbers of problems.
const CHECK_FAILED: u8 = 101;

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { log, command } = Arguments::parse();
    log.init();
    match command {
        Command::Install(args) => {
            install::install(&args.from, &args.to)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => {
            runtime()?.block_on(run::run(args))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Clean(args) => runtime()?.block_on(clean::run(&args)),
        Command::Check(args) => {
            let checked = runtime()?.block_on(check::run(&args));
            Ok(checked.unwrap_or_else(|error| {
                eprintln!("{error:#}");
                ExitCode::from(CHECK_FAILED)
            }))
        }
    }
}

/// A runtime with one thread, because the agent waits most of the time, and one thread needs the least memory.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
