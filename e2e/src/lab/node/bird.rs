//! BIRD on a node: the stock program, started as its DaemonSet does, and what it says itself.

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

/// The configuration of BIRD before the agent writes one.
const BASE: &str = "router id 0.0.0.1;
protocol static nothing { disabled; ipv4; }
include \"/run/netweft/bird/*.conf\";
";
/// The folder of the configuration.
pub const FOLDER: &str = "/run/netweft/bird";
const SOCKET: &str = "/run/netweft/bird/bird.ctl";
/// The time limit of an answer of BIRD, and of its end.
const DEADLINE: Duration = Duration::from_secs(10);

/// A running BIRD.
pub struct Bird {
    child: Child,
}

impl Bird {
    /// Start it in a node, and wait until it answers. `programs` is the folder with bird and birdc.
    pub fn start(
        run: &mut Run,
        node: &str,
        space: &Namespace,
        programs: &Path,
    ) -> anyhow::Result<Self> {
        let bird = Self::launch(run, node, space, programs)?;
        until("BIRD to answer", DEADLINE, || {
            ask(space, programs, "show status")
        })
        .with_context(|| fs::read_to_string(log(run, node)).unwrap_or_default())?;
        Ok(bird)
    }

    /// Start it in a node.
    pub fn launch(
        run: &mut Run,
        node: &str,
        space: &Namespace,
        programs: &Path,
    ) -> anyhow::Result<Self> {
        let base = run.folder().join("bird-base.conf");
        // Once: another node's may be reading it.
        if !base.exists() {
            fs::write(&base, BASE)?;
        }
        fs::create_dir_all(space.file(FOLDER))?;
        let mut command = space.command(programs.join("bird"));
        command.arg("-f").arg("-R").arg("-c").arg(base);
        command.args(["-s", SOCKET]);
        let child = space.start(run, &mut command, &log(run, node))?;
        Ok(Self { child })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// End BIRD as an upgrade does, by a graceful restart.
    pub fn leave_gracefully(mut self, space: &Namespace, programs: &Path) -> anyhow::Result<()> {
        ask(space, programs, "graceful restart")?;
        until("BIRD to end", DEADLINE, || {
            let ended = self.child.try_wait()?;
            ended.context("it goes on").map(drop)
        })
    }
}

/// Where its words go.
pub fn log(run: &Run, node: &str) -> PathBuf {
    run.folder().join(format!("{node}-bird.log"))
}

/// What BIRD answers.
pub fn ask(space: &Namespace, programs: &Path, what: &str) -> anyhow::Result<String> {
    let mut command = space.command(programs.join("birdc"));
    command.args(["-s", SOCKET]).args(what.split_whitespace());
    let said = output(&mut command)?;
    // birdc also exits with 0 when no BIRD listens.
    ensure!(
        !said.contains("Unable to connect"),
        "BIRD does not answer: {said}"
    );
    Ok(said)
}

/// The established sessions, and since when by BIRD's clock: two equal answers mean that nothing has happened in between.
pub fn established(space: &Namespace, programs: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let said = ask(space, programs, "show protocols")?;
    let session = |line: &str| match *line.split_whitespace().collect::<Vec<_>>() {
        // Date and time.
        [name, "BGP", _, "up", ref since @ .., "Established"] => {
            Some((name.to_owned(), since.join(" ")))
        }
        _ => None,
    };
    Ok(said.lines().filter_map(session).collect())
}
