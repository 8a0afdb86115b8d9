//! The log on standard error, and its command-line flags.

use std::io::{self, IsTerminal};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// The flags of the log. They are valid before and after a subcommand.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// Level of the log (off, error, warn, info, debug, trace), or directives of tracing_subscriber::EnvFilter, for example
    /// info,kube=debug.
    #[arg(
        long,
        global = true,
        env = "NETWEFT_LOG",
        value_name = "LEVEL|DIRECTIVES",
        default_value = "info"
    )]
    pub log: LogFilter,

    /// Format of the log.
    #[arg(
        long,
        global = true,
        env = "NETWEFT_LOG_FORMAT",
        value_enum,
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

impl LogArgs {
    /// Starts logging. Call it once, at the start of the program.
    pub fn init(&self) {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(&self.log.0))
            .with_writer(io::stderr);
        match self.log_format {
            LogFormat::Text => builder
                .with_target(false)
                .with_ansi(io::stderr().is_terminal())
                .init(),
            LogFormat::Json => builder.json().init(),
        }
    }
}

/// Valid directives of `EnvFilter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // EnvFilter interprets a misspelled level as the name of a module, and then logs only that module.
        let is_valid = |directive: &str| {
            directive.contains(['=', '['])
                || (!directive.is_empty() && LevelFilter::from_str(directive).is_ok())
        };
        if text.split(',').all(is_valid) && EnvFilter::try_new(text).is_ok() {
            return Ok(Self(text.to_owned()));
        }
        Err(
            "use off, error, warn, info, debug, trace, or directives of EnvFilter, for example info,kube=debug"
                .to_owned(),
        )
    }
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object per line.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::{Parser, Subcommand};

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        log: LogArgs,
        #[command(subcommand)]
        command: Option<Command>,
    }

    #[derive(Debug, Subcommand)]
    enum Command {
        Run,
    }

    fn parse(flags: &[&str]) -> Result<LogArgs, String> {
        let arguments = ["program"].iter().chain(flags);
        let parsed = Program::try_parse_from(arguments);
        parsed
            .map(|program| program.log)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn log_flags_are_accepted_before_and_after_subcommand() {
        for flags in [
            &["--log", "debug", "--log-format", "json", "run"][..],
            &["run", "--log=debug", "--log-format=json"],
        ] {
            let log = parse(flags).unwrap();
            assert_eq!(log.log, LogFilter("debug".to_owned()), "{flags:?}");
            assert_eq!(log.log_format, LogFormat::Json, "{flags:?}");
        }
        let log = parse(&[]).unwrap();
        assert_eq!(log.log, LogFilter("info".to_owned()));
        assert_eq!(log.log_format, LogFormat::Text);
    }

    #[test]
    fn valid_log_filter_is_accepted() {
        for valid in [
            "off",
            "WARN",
            "info,kube=debug",
            "debug,hyper=info",
            "[reconcile]=trace",
        ] {
            assert!(LogFilter::from_str(valid).is_ok(), "{valid}");
        }
    }

    #[test]
    fn invalid_log_filter_is_refused_with_valid_values() {
        for invalid in ["", "wran", "info,", "info,kube", "kube=loud", "[x=info"] {
            let error = parse(&["--log", invalid]).unwrap_err();
            assert!(error.contains("--log"), "{error}");
            assert!(error.contains("use off, error, warn"), "{error}");
        }
    }

    #[test]
    fn invalid_log_format_is_refused_with_valid_values() {
        let error = parse(&["--log-format", "xml"]).unwrap_err();
        assert!(error.contains("[possible values: text, json]"), "{error}");
    }
}
