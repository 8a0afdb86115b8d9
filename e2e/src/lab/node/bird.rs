//! BIRD on a node: the unmodified program, started with the arguments of the DaemonSet, and its status.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::harness::run_dir::Run;
use crate::lab::topology::namespace::Namespace;

/// The configuration before the agent has written any.
const BASE: &str = "router id 0.0.0.1;
protocol static nothing { disabled; ipv4; }
include \"/run/netweft/bird/*.conf\";
";
/// Folder with the configuration that the agent writes.
pub const FOLDER: &str = "/run/netweft/bird";
const SOCKET: &str = "/run/netweft/bird/bird.ctl";
/// Limit until BIRD answers, or ends after a command to end.
const DEADLINE: Duration = Duration::from_secs(10);

/// A running BIRD.
pub struct Bird {
    child: Child,
}

impl Bird {
    /// Starts BIRD on a node and waits until it answers. `programs` is the folder with bird and birdc.
    pub fn start(
        run: &mut Run,
        node: &str,
        namespace: &Namespace,
        programs: &Path,
    ) -> anyhow::Result<Self> {
        let bird = Self::spawn(run, node, namespace, programs)?;
        until("an answer of BIRD", DEADLINE, || {
            run_command(namespace, programs, "show status")
        })
        .with_context(|| fs::read_to_string(log(run, node)).unwrap_or_default())?;
        Ok(bird)
    }

    /// Starts BIRD on a node without waiting.
    pub fn spawn(
        run: &mut Run,
        node: &str,
        namespace: &Namespace,
        programs: &Path,
    ) -> anyhow::Result<Self> {
        let base = run.folder().join("bird-base.conf");
        // Written once, because the BIRD of another node may be reading the file.
        if !base.exists() {
            fs::write(&base, BASE)?;
        }
        fs::create_dir_all(namespace.file(FOLDER))?;
        let mut command = namespace.command(programs.join("bird"));
        command.arg("-f").arg("-R").arg("-c").arg(base);
        command.args(["-s", SOCKET]);
        let child = namespace.start(run, &mut command, &log(run, node))?;
        Ok(Self { child })
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends BIRD with a graceful restart, as an upgrade does: the peers keep its routes.
    pub fn stop_gracefully(mut self, namespace: &Namespace, programs: &Path) -> anyhow::Result<()> {
        run_command(namespace, programs, "graceful restart")?;
        until("the end of BIRD", DEADLINE, || {
            let ended = self.child.try_wait()?;
            ended.context("BIRD still runs").map(drop)
        })
    }
}

/// Path of BIRD's log.
pub fn log(run: &Run, node: &str) -> PathBuf {
    run.folder().join(format!("{node}-bird.log"))
}

/// Runs a command of birdc and returns its output.
pub fn run_command(namespace: &Namespace, programs: &Path, words: &str) -> anyhow::Result<String> {
    let mut command = namespace.command(programs.join("birdc"));
    command.args(["-s", SOCKET]).args(words.split_whitespace());
    let text = output(&mut command)?;
    // The exit status of birdc is 0 also without a connection to BIRD.
    ensure!(
        !text.contains("Unable to connect"),
        "BIRD does not answer: {text}"
    );
    Ok(text)
}

/// The established sessions by name, with the time of establishment. Equal results of two calls show that no session restarted between
/// them.
pub fn established(
    namespace: &Namespace,
    programs: &Path,
) -> anyhow::Result<BTreeMap<String, String>> {
    let output = run_command(namespace, programs, "show protocols")?;
    let session = |line: &str| match *line.split_whitespace().collect::<Vec<_>>() {
        // Date and time.
        [name, "BGP", _, "up", ref since @ .., "Established"] => {
            Some((name.to_owned(), since.join(" ")))
        }
        _ => None,
    };
    Ok(output.lines().filter_map(session).collect())
}
