//! The node agent: makes the kernel of one node agree with what the operator assigned.
//!
//! ```text
//!   watches ─▶ Objects ─▶ Inputs ─┐
//!                kernel ─▶ Facts ─┴─▶ desired ─▶ diff ─▶ apply ─▶ status
//! ```
//!
//! `inputs`, `facts`, `desired` and `status` decide and touch nothing; `source`, `reconcile`, `nft`, `sysctl`,
//! `cni_conf`, `install` and `report` touch and decide nothing.

mod admin;
mod args;
mod cni_conf;
mod desired;
mod facts;
mod inputs;
mod install;
mod metrics;
mod nft;
mod reconcile;
mod report;
mod run;
mod source;
mod status;
mod sysctl;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Command, LogFormat, Verb};

fn main() -> anyhow::Result<()> {
    match Command::parse().verb {
        Verb::Install(args) => {
            log_to_stderr(LogFormat::Text);
            Ok(install::install(&args.from, &args.to)?)
        }
        Verb::Run(args) => {
            log_to_stderr(args.log_format);
            // One thread is enough for one node, and costs the least memory.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(run::run(args))
        }
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("NETWEFT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => subscriber.with_target(false).with_ansi(terminal).init(),
        LogFormat::Json => subscriber.json().init(),
    }
}
