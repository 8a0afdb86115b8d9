//! Logs: lines on standard error.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::commands::args::{Args, LogFormat};

/// Starts logging.
///
/// # Errors
/// When the directives make no sense.
pub fn init(args: &Args) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(&args.log).with_context(|| format!("parse --log {}", args.log))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
