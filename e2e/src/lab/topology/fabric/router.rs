//! A machine that is not ours: a router, or a speaker that only reflects.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

use crate::harness::poll::until;
use crate::harness::run_dir::Run;
use crate::lab::topology::fabric::speaker::Speaker;
use crate::lab::topology::namespace::Namespace;

/// Whose programs the fabric runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Routers {
    /// FRR in every router.
    Frr,
    /// Debian's BIRD in every router.
    Bird,
    /// GoBGP in each rack as reflector or route server, and BIRD in the routers: GoBGP has no hand on the kernel's routes of its
    /// own, and Debian's does not understand Debian's zebra.
    Gobgp,
}

impl Routers {
    /// What the routers themselves run.
    pub fn program(self) -> Program {
        match self {
            Self::Frr => Program::Frr,
            Self::Bird | Self::Gobgp => Program::Bird,
        }
    }
}

impl fmt::Display for Routers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frr => "FRR",
            Self::Bird => "BIRD",
            Self::Gobgp => "GoBGP beside BIRD",
        })
    }
}

/// A program that speaks BGP.
#[derive(Clone, Copy)]
pub enum Program {
    Frr,
    Bird,
    Gobgp,
}

/// How long a program may take until it listens.
const STARTED: Duration = Duration::from_secs(20);

/// A machine with a network and a /run of its own, and Debian's routers as its files.
pub struct Router {
    /// Its name.
    pub name: String,
    /// Its namespaces.
    pub space: Namespace,
    root: PathBuf,
}

impl Router {
    /// One that is connected to nothing yet and forwards.
    pub fn make(run: &mut Run, name: &str, root: &Path) -> anyhow::Result<Self> {
        let space = Namespace::machine(run, root)?;
        space.sysctl("net.ipv4.ip_forward", "1")?;
        space.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        Ok(Self {
            name: name.to_owned(),
            space,
            root: root.to_owned(),
        })
    }

    /// Let it speak.
    pub fn start(&self, run: &mut Run, program: Program, speaker: &Speaker) -> anyhow::Result<()> {
        match program {
            Program::Frr => self.start_frr(run, speaker),
            Program::Bird => {
                self.write("bird.conf", &speaker.bird())?;
                let words = "/usr/sbin/bird -f -c /run/bird.conf -s /run/bird.ctl";
                self.daemon(run, "bird", words)
            }
            Program::Gobgp => {
                self.write("gobgpd.conf", &speaker.gobgp())?;
                self.daemon(run, "gobgpd", "/usr/bin/gobgpd -f /run/gobgpd.conf")
            }
        }
    }

    fn start_frr(&self, run: &mut Run, speaker: &Speaker) -> anyhow::Result<()> {
        let mut make = self.chrooted();
        make.args("install -d -o frr -g frr /run/frr".split(' '));
        crate::harness::command::output(&mut make)?;
        self.frr_daemon(run, "zebra", "log stdout\n")?;
        self.frr_daemon(run, "bfdd", &Speaker::frr_bfdd())?;
        // bgpd asks for its BFD sessions once, through zebra, which forgets them while bfdd has not introduced itself.
        until("bfdd to introduce itself to zebra", STARTED, || {
            let clients = self.inside("vtysh -d zebra -c", &["show zebra client summary"])?;
            ensure!(clients.contains("bfd"), "{clients}");
            Ok(())
        })?;
        self.frr_daemon(run, "bgpd", &speaker.frr_bgpd())
    }

    fn frr_daemon(&self, run: &mut Run, daemon: &str, text: &str) -> anyhow::Result<()> {
        self.write(&format!("{daemon}.conf"), text)?;
        let words = format!("/usr/lib/frr/{daemon} -f /run/{daemon}.conf");
        self.daemon(run, daemon, &words)
    }

    /// How many sessions of BFD are up.
    pub fn watched(&self, program: Program) -> anyhow::Result<usize> {
        let (command, question, up) = match program {
            Program::Frr => ("vtysh -d bfdd -c", "show bfd peers brief", " up"),
            Program::Bird => ("birdc -s /run/bird.ctl", "show bfd sessions", " Up "),
            Program::Gobgp => bail!("GoBGP has no BFD"),
        };
        let table = self.inside(command, &[question])?;
        Ok(table.lines().filter(|line| line.contains(up)).count())
    }

    /// A command in the root of the router. PATH is set: that of the caller can lack the folders of the root.
    fn chrooted(&self) -> Command {
        let mut command = self.space.command("chroot");
        command.arg(&self.root);
        command.args(["/usr/bin/env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        command
    }

    /// What a program answers in there.
    fn inside(&self, words: &str, more: &[&str]) -> anyhow::Result<String> {
        let mut command = self.chrooted();
        command.args(words.split(' ')).args(more);
        crate::harness::command::output(&mut command)
    }

    /// In its own /run, which every process in there may read.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let inside = format!("{}/run/{name}", self.root.display());
        let file = self.space.file(&inside);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }

    fn daemon(&self, run: &mut Run, name: &str, words: &str) -> anyhow::Result<()> {
        let mut command = self.chrooted();
        command.args(words.split(' '));
        let log = run.folder().join(format!("{}-{name}.log", self.name));
        self.space.start(run, &mut command, &log).map(drop)
    }

    /// The kernel's routes of one family, for a failure.
    pub fn routes(&self, like: IpAddr) -> String {
        let family = if like.is_ipv4() { "-4" } else { "-6" };
        let routes = self.space.ip(&format!("{family} route show"));
        format!("--- {}\n{}", self.name, routes.unwrap_or_default())
    }
}
