//! What the runtime can ask for: the shell around the pure parts, one file per command (CNI_COMMAND).
//!
//! Files are read and written on the main thread before and after the runtime's `block_on`; only netlink runs inside it.

use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use crate::attachment::Store;
use crate::conf::{CNI_VERSION, NetConf, SUPPORTED_VERSIONS};
use crate::env::{Command, Environment};
use crate::error::PluginError;
use crate::host_ports;

mod add;
mod check;
mod del;
mod gc;
mod status;
mod sysctl;

/// How long a command waits for the lock. Its holders need less than a millisecond each, unless one is stopped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Carries out one request and returns the text for standard output: the result, or the answer that says why not.
///
/// # Errors
/// The answer to print before leaving with a failure.
pub fn run(
    get: impl Fn(&str) -> Option<String>,
    input: &[u8],
) -> Result<String, (PluginError, String)> {
    let environment = Environment(get);
    let command = environment
        .command()
        .map_err(|error| (error, CNI_VERSION.to_owned()))?;
    if command == Command::Version {
        return Ok(version(input));
    }
    let conf: NetConf = serde_json::from_slice(input)
        .map_err(|source| PluginError::Decode {
            what: "the configuration on standard input",
            source,
        })
        .map_err(|error| (error, CNI_VERSION.to_owned()))?;
    let answer_in = if SUPPORTED_VERSIONS.contains(&conf.cni_version.as_str()) {
        &conf.cni_version
    } else {
        CNI_VERSION
    };
    dispatch(command, &environment, &conf).map_err(|error| (error, answer_in.to_owned()))
}

fn dispatch<F: Fn(&str) -> Option<String>>(
    command: Command,
    environment: &Environment<F>,
    conf: &NetConf,
) -> Result<String, PluginError> {
    supported(command, &conf.cni_version)?;
    if conf.name.is_empty() {
        return Err(PluginError::Config(
            "the configuration has no name".to_owned(),
        ));
    }
    let done = |()| String::new();
    match command {
        Command::Add => {
            host_ports::check(&conf.runtime_config, &environment.path())?;
            add::add(
                conf,
                environment.owner()?,
                environment.netns()?,
                environment.pod()?,
            )
        }
        Command::Del => del::del(conf, &environment.owner()?).map(done),
        Command::Check => {
            check::check(conf, &environment.owner()?, &environment.netns()?).map(done)
        }
        Command::Status => status::status(conf).map(done),
        Command::Gc => gc::gc(conf).map(done),
        Command::Version => Ok(version(&[])),
    }
}

/// CHECK came with 0.4.0, STATUS and GC with 1.1.0.
fn supported(command: Command, version: &str) -> Result<(), PluginError> {
    let since = match command {
        Command::Add | Command::Del | Command::Version => "0.3.1",
        Command::Check => "0.4.0",
        Command::Status | Command::Gc => "1.1.0",
    };
    let position = |version: &str| {
        SUPPORTED_VERSIONS
            .iter()
            .position(|known| *known == version)
    };
    match position(version) {
        Some(found) if Some(found) >= position(since) => Ok(()),
        _ => Err(PluginError::Version {
            found: version.to_owned(),
            command: command.to_string(),
        }),
    }
}

/// Answers in the version that was asked in, if it is one at all.
fn version(input: &[u8]) -> String {
    let asked = serde_json::from_slice::<serde_json::Value>(input).ok();
    let asked = asked
        .as_ref()
        .and_then(|conf| conf.get("cniVersion"))
        .and_then(serde_json::Value::as_str);
    let answer_in = asked
        .filter(|asked| SUPPORTED_VERSIONS.contains(asked))
        .unwrap_or(CNI_VERSION);
    serde_json::json!({ "cniVersion": answer_in, "supportedVersions": SUPPORTED_VERSIONS })
        .to_string()
}

fn store(conf: &NetConf) -> Store {
    Store::new(Path::new(&conf.run_dir))
}

/// What is the matter with the directory of attachments.
fn attachments_error(
    tried: &str,
    conf: &NetConf,
) -> impl Fn(std::io::Error) -> PluginError + use<> {
    io_error(&format!("{tried} in {}/attachments", conf.run_dir))
}

/// Names a record that cannot be read. Whose it is is not known, so it is nobody's to take away.
fn say_unreadable(ip: IpAddr, error: &std::io::Error) {
    eprintln!("attachment {ip} cannot be read and stays: {error}");
}

fn io_error(what: &str) -> impl Fn(std::io::Error) -> PluginError + use<> {
    let what = what.to_owned();
    move |source| PluginError::Io {
        what: what.clone(),
        source,
    }
}

/// Takes the lock of the store.
fn lock(store: &Store) -> Result<crate::attachment::Locked<'_>, PluginError> {
    store
        .lock(LOCK_TIMEOUT)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => PluginError::TryLater(
                "another process keeps the lock in the run directory".to_owned(),
            ),
            _ => io_error("take the lock in the run directory")(error),
        })
}

/// Runs the netlink part of a command on this thread.
fn block_on<T, E: From<PluginError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .map_err(io_error("start the runtime"))?
        .block_on(work)
}
