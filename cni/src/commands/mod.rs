//! The commands (CNI_COMMAND), one file for each: they read, call the pure parts, and apply the result.
//!
//! Only netlink requests run in the asynchronous runtime (`block_on`). Files are read and written outside of it.

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

/// How long a command waits for the lock. A process holds it for less than a millisecond, unless the process is stopped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Executes one request and returns the text for standard output.
///
/// # Errors
/// The error, and the version of the specification in which to print it.
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
        .map_err(|source| (PluginError::Decode(source), CNI_VERSION.to_owned()))?;
    let result_version = if SUPPORTED_VERSIONS.contains(&conf.cni_version.as_str()) {
        &conf.cni_version
    } else {
        CNI_VERSION
    };
    dispatch(command, &environment, &conf).map_err(|error| (error, result_version.to_owned()))
}

fn dispatch<F: Fn(&str) -> Option<String>>(
    command: Command,
    environment: &Environment<F>,
    conf: &NetConf,
) -> Result<String, PluginError> {
    check_version(command, &conf.cni_version)?;
    if conf.name.is_empty() {
        return Err(PluginError::Config(
            "field name of the network configuration is missing or empty: the container runtime must pass the name of \
             the network"
                .to_owned(),
        ));
    }
    let no_result = |()| String::new();
    match command {
        Command::Add => {
            host_ports::check(&conf.runtime_config, &environment.path())?;
            add::add(
                conf,
                environment.attachment_id()?,
                environment.netns()?,
                environment.pod()?,
            )
        }
        Command::Del => del::del(conf, &environment.attachment_id()?).map(no_result),
        Command::Check => {
            check::check(conf, &environment.attachment_id()?, &environment.netns()?).map(no_result)
        }
        Command::Status => status::status(conf).map(no_result),
        Command::Gc => gc::gc(conf).map(no_result),
        Command::Version => Ok(version(&[])),
    }
}

/// Checks that the version of the configuration supports the command.
fn check_version(command: Command, version: &str) -> Result<(), PluginError> {
    // CHECK exists since 0.4.0, STATUS and GC since 1.1.0.
    let supported: &'static [&'static str] = match command {
        Command::Add | Command::Del | Command::Version => &SUPPORTED_VERSIONS,
        Command::Check => &["0.4.0", "1.0.0", CNI_VERSION],
        Command::Status | Command::Gc => &[CNI_VERSION],
    };
    if supported.contains(&version) {
        return Ok(());
    }
    Err(PluginError::Version {
        found: version.to_owned(),
        command: command.to_string(),
        supported,
    })
}

/// The result of VERSION: in the version of the input if it is supported, else in the newest.
fn version(input: &[u8]) -> String {
    let conf = serde_json::from_slice::<serde_json::Value>(input).ok();
    let requested = conf
        .as_ref()
        .and_then(|conf| conf.get("cniVersion"))
        .and_then(serde_json::Value::as_str);
    let result_version = requested
        .filter(|version| SUPPORTED_VERSIONS.contains(version))
        .unwrap_or(CNI_VERSION);
    serde_json::json!({ "cniVersion": result_version, "supportedVersions": SUPPORTED_VERSIONS })
        .to_string()
}

fn store(conf: &NetConf) -> Store {
    Store::new(Path::new(&conf.run_dir))
}

/// An error of the directory of attachment records.
fn attachments_error(
    operation: &str,
    conf: &NetConf,
) -> impl Fn(std::io::Error) -> PluginError + use<> {
    io_error(&format!("{operation} in {}/attachments", conf.run_dir))
}

/// Reports a record that cannot be read. Its owner is unknown, so no command removes it.
fn log_unreadable_record(ip: IpAddr, error: &std::io::Error) {
    eprintln!(
        "attachment record {ip} cannot be read, and its address stays allocated: {error}; delete the record when no pod \
         has the address"
    );
}

fn io_error(what: &str) -> impl Fn(std::io::Error) -> PluginError + use<> {
    let what = what.to_owned();
    move |source| PluginError::Io {
        what: what.clone(),
        source,
    }
}

/// Acquires the lock of the store.
fn lock(store: &Store) -> Result<crate::attachment::Locked<'_>, PluginError> {
    store.lock(LOCK_TIMEOUT).map_err(|error| {
        let path = store.lock_file();
        let path = path.display();
        match error.kind() {
            std::io::ErrorKind::WouldBlock => PluginError::TryLater(format!(
                "another process has held the lock {path} for {} s: find the process with lslocks, and continue or end it",
                LOCK_TIMEOUT.as_secs()
            )),
            _ => io_error(&format!("acquire the lock {path}"))(error),
        }
    })
}

/// Runs the netlink part of a command on this thread.
fn block_on<T, E: From<PluginError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .map_err(io_error("start the asynchronous runtime of the plugin"))?
        .block_on(work)
}
