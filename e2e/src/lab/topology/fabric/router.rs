//! A router of the fabric, or a separate route reflector.

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

/// The BGP implementation of the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Routers {
    /// FRR in all routers.
    Frr,
    /// Debian's BIRD in all routers.
    Bird,
    /// GoBGP in each rack as reflector or route server, and BIRD in the routers. GoBGP alone cannot install kernel routes, and Debian's
    /// version is not compatible with Debian's zebra.
    Gobgp,
}

impl Routers {
    /// The program of the routers.
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
            Self::Gobgp => "GoBGP and BIRD",
        })
    }
}

/// A BGP program.
#[derive(Clone, Copy)]
pub enum Program {
    Frr,
    Bird,
    Gobgp,
}

/// Limit until a program is ready.
const STARTED: Duration = Duration::from_secs(20);

/// Namespaces with a separate network and `/run`, and a root folder with Debian's router packages.
pub struct Router {
    /// The name.
    pub name: String,
    /// The namespaces.
    pub namespace: Namespace,
    root: PathBuf,
}

impl Router {
    /// Creates a router without links, with forwarding enabled.
    pub fn create(run: &mut Run, name: &str, root: &Path) -> anyhow::Result<Self> {
        let namespace = Namespace::machine(run, root)?;
        namespace.sysctl("net.ipv4.ip_forward", "1")?;
        namespace.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        Ok(Self {
            name: name.to_owned(),
            namespace,
            root: root.to_owned(),
        })
    }

    /// Starts the program with the configuration of `speaker`.
    pub fn start(&self, run: &mut Run, program: Program, speaker: &Speaker) -> anyhow::Result<()> {
        match program {
            Program::Frr => self.start_frr(run, speaker),
            Program::Bird => {
                self.write("bird.conf", &speaker.bird())?;
                let command = "/usr/sbin/bird -f -c /run/bird.conf -s /run/bird.ctl";
                self.daemon(run, "bird", command)
            }
            Program::Gobgp => {
                self.write("gobgpd.conf", &speaker.gobgp())?;
                self.daemon(run, "gobgpd", "/usr/bin/gobgpd -f /run/gobgpd.conf")
            }
        }
    }

    fn start_frr(&self, run: &mut Run, speaker: &Speaker) -> anyhow::Result<()> {
        let mut install = self.chrooted();
        install.args("install -d -o frr -g frr /run/frr".split(' '));
        crate::harness::command::output(&mut install)?;
        self.frr_daemon(run, "zebra", "log stdout\n")?;
        self.frr_daemon(run, "bfdd", &Speaker::frr_bfdd())?;
        // bgpd registers its BFD sessions once through zebra, which discards them if bfdd is not connected yet.
        until("the connection of bfdd to zebra", STARTED, || {
            let clients = self.output_of("vtysh -d zebra -c", &["show zebra client summary"])?;
            ensure!(clients.contains("bfd"), "{clients}");
            Ok(())
        })?;
        self.frr_daemon(run, "bgpd", &speaker.frr_bgpd())
    }

    fn frr_daemon(&self, run: &mut Run, daemon: &str, text: &str) -> anyhow::Result<()> {
        self.write(&format!("{daemon}.conf"), text)?;
        let command = format!("/usr/lib/frr/{daemon} -f /run/{daemon}.conf");
        self.daemon(run, daemon, &command)
    }

    /// The number of BFD sessions that are up.
    pub fn bfd_sessions(&self, program: Program) -> anyhow::Result<usize> {
        let (program, command, up) = match program {
            Program::Frr => ("vtysh -d bfdd -c", "show bfd peers brief", " up"),
            Program::Bird => ("birdc -s /run/bird.ctl", "show bfd sessions", " Up "),
            Program::Gobgp => bail!("GoBGP has no BFD"),
        };
        let table = self.output_of(program, &[command])?;
        Ok(table.lines().filter(|line| line.contains(up)).count())
    }

    /// A command in the root folder of the router. PATH is set, because the caller's can lack folders of the root.
    fn chrooted(&self) -> Command {
        let mut command = self.namespace.command("chroot");
        command.arg(&self.root);
        command.args(["/usr/bin/env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        command
    }

    /// The output of a program in the root folder, with additional arguments.
    fn output_of(&self, words: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.chrooted();
        command.args(words.split(' ')).args(arguments);
        crate::harness::command::output(&mut command)
    }

    /// Writes a file in the router's `/run`, readable by all users of its daemons.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = format!("{}/run/{name}", self.root.display());
        let file = self.namespace.file(&path);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }

    fn daemon(&self, run: &mut Run, name: &str, command_line: &str) -> anyhow::Result<()> {
        let mut command = self.chrooted();
        command.args(command_line.split(' '));
        let log = run.folder().join(format!("{}-{name}.log", self.name));
        self.namespace.start(run, &mut command, &log).map(drop)
    }

    /// The kernel routes of the family of `like`, for messages of a failure.
    pub fn routes(&self, like: IpAddr) -> String {
        let family = if like.is_ipv4() { "-4" } else { "-6" };
        let routes = self.namespace.ip(&format!("{family} route show"));
        format!("--- {}\n{}", self.name, routes.unwrap_or_default())
    }
}
