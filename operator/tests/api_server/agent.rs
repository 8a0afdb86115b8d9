//! The agent's program on a node of this test: a network namespace without a way out but for the API server.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::control_plane::{ControlPlane, Process};
use crate::objects::token;

/// The agent of a node, with the token that its pod would have.
pub struct Agent {
    process: Process,
    dir: TempDir,
}

impl Agent {
    /// Starts one on a node that has this address and, by their records, these pods.
    pub async fn start(plane: &ControlPlane, node: &str, address: &str, pods: &[String]) -> Self {
        Self::start_by(plane, plane.url(), (node, address), pods).await
    }

    /// The same, of one that goes to the API server by `url`.
    pub async fn start_by(
        plane: &ControlPlane,
        url: &str,
        (node, address): (&str, &str),
        pods: &[String],
    ) -> Self {
        let token = token(&plane.admin(), "netweft-agent", Some(node)).await;
        let kubeconfig = plane.kubeconfig(url, &token);
        let dir = tempfile::tempdir().unwrap();
        let attachments = dir.path().join("run/attachments");
        fs::create_dir_all(&attachments).unwrap();
        for pod in pods {
            // A record that cannot be read is counted and stays, and needs no pod that goes with it.
            fs::write(attachments.join(pod), "").unwrap();
        }
        let log = plane.dir.path().join(format!("agent-{node}.log"));
        let mut command = command(node, &kubeconfig, dir.path());
        let (_, server) = url.split_once("://").unwrap();
        let server = server.to_owned();
        let address = address.to_owned();
        // Network namespaces are a thread's own.
        let started = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root");
            ip("link set lo up");
            ip("link add ens7 type veth peer name far0");
            ip(&format!("address add {address}/24 dev ens7"));
            ip("link set ens7 up");
            let listener = TcpListener::bind(&server).unwrap();
            (Process::start(&mut command, &log), listener, server)
        });
        let (process, listener, server) = started.join().unwrap();
        std::thread::spawn(move || pass_on(&listener, &server));
        Self { process, dir }
    }

    /// The pods go.
    pub fn lose_its_pods(&self) {
        let attachments = self.dir.path().join("run/attachments");
        for record in fs::read_dir(attachments).unwrap() {
            fs::remove_file(record.unwrap().path()).unwrap();
        }
        // The agent hears of links, not of files.
        for line in ["link add nudge type bridge", "link delete nudge"] {
            let namespace = format!("--net=/proc/{}/ns/net", self.process.id());
            let mut nsenter = Command::new("nsenter");
            nsenter.args([&namespace, "ip"]).args(line.split(' '));
            assert!(nsenter.status().unwrap().success(), "{line}");
        }
    }
}

fn command(node: &str, kubeconfig: &Path, dir: &Path) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_netweft-operator")).with_file_name("netweft-agent");
    assert!(
        program.is_file(),
        "the agent beside the operator: build the whole workspace"
    );
    let path = |name: &str| dir.join(name);
    let mut command = Command::new(program);
    command.env("KUBECONFIG", kubeconfig);
    command.args(["run", "--node", node]);
    let places: [(&str, PathBuf); 2] =
        [("--run-dir", path("run")), ("--cni-conf-dir", path("cni"))];
    for (flag, place) in places {
        command.arg(flag).arg(place);
    }
    command
}

fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).status();
    assert!(done.expect("ip, of iproute2").success(), "ip {line}");
}

/// Takes each connection to the listener, which is the agent's side, to the server on this side, where it is called the same.
fn pass_on(listener: &TcpListener, server: &str) {
    for from in listener.incoming() {
        let (from, to) = (from.unwrap(), TcpStream::connect(server).unwrap());
        let back = (to.try_clone().unwrap(), from.try_clone().unwrap());
        std::thread::spawn(move || carry(from, to));
        std::thread::spawn(move || carry(back.0, back.1));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    // However it ends, it has ended.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}
