//! The node agent: makes the kernel of one node agree with what the operator assigned.
//!
//! ```text
//!   watches ─▶ Objects ─▶ Inputs ─┐
//!                kernel ─▶ Facts ─┴─▶ desired ─▶ diff ─▶ apply ─▶ status
//! ```
//!
//! `desired`, `drift`, most of `inputs` and `status::problem` decide and are pure; `inputs::source`, `reconcile`, `apply`, `pods`, `bird`, `firewall`,
//! `probes` and the publisher of `status` read and write.

mod apply;
mod bird;
mod commands;
#[cfg(test)]
mod condition_texts;
mod desired;
mod drift;
mod firewall;
mod inputs;
mod pods;
mod probes;
mod reconcile;
mod status;
mod telemetry;

use crate::commands::check;
use crate::commands::clean;
use crate::commands::install;
use crate::commands::run;
use std::process::ExitCode;

use clap::Parser;

use crate::commands::args::{Command, Verb};

/// When `check` could not look; below are numbers of problems.
const CANNOT_LOOK: u8 = 101;

fn main() -> anyhow::Result<ExitCode> {
    let Command { log, verb } = Command::parse();
    log.init();
    match verb {
        Verb::Install(args) => {
            install::install(&args.from, &args.to)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Run(args) => {
            runtime()?.block_on(run::run(args))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Clean(args) => runtime()?.block_on(clean::run(&args)),
        Verb::Check(args) => {
            let looked = runtime()?.block_on(check::run(&args));
            Ok(looked.unwrap_or_else(|error| {
                eprintln!("{error:#}");
                ExitCode::from(CANNOT_LOOK)
            }))
        }
    }
}

/// One thread is enough for what waits most of the time, and costs the least memory.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
