//! The agent's program on a simulated node: a network namespace that reaches only the API server.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::control_plane::{ControlPlane, Process};
use crate::objects::token;

/// The agent of a node, with a token like that of its pod.
pub struct Agent {
    process: Process,
    dir: TempDir,
}

impl Agent {
    /// Starts an agent on a node with this address and records of these pods.
    pub async fn start(plane: &ControlPlane, node: &str, address: &str, pods: &[String]) -> Self {
        Self::start_with_url(plane, plane.url(), (node, address), pods).await
    }

    /// Starts an agent that reaches the API server by `url`.
    pub async fn start_with_url(
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
            // An unreadable record counts as a pod and is never removed, so no pod is needed.
            fs::write(attachments.join(pod), "").unwrap();
        }
        let log = plane.dir.path().join(format!("agent-{node}.log"));
        let mut command = command(node, &kubeconfig, dir.path());
        let (_, server) = url.split_once("://").unwrap();
        let server = server.to_owned();
        let address = address.to_owned();
        // A network namespace belongs to a thread.
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
        std::thread::spawn(move || forward_connections(&listener, &server));
        Self { process, dir }
    }

    /// Removes the records of all pods.
    pub fn remove_pods(&self) {
        let attachments = self.dir.path().join("run/attachments");
        for record in fs::read_dir(attachments).unwrap() {
            fs::remove_file(record.unwrap().path()).unwrap();
        }
        // The agent is notified about links, not about files.
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
        "the agent is not in the target directory: build the whole workspace"
    );
    let path = |name: &str| dir.join(name);
    let mut command = Command::new(program);
    command.env("KUBECONFIG", kubeconfig);
    command.args(["run", "--node", node]);
    let directories: [(&str, PathBuf); 2] =
        [("--run-dir", path("run")), ("--cni-conf-dir", path("cni"))];
    for (flag, directory) in directories {
        command.arg(flag).arg(directory);
    }
    command
}

fn ip(line: &str) {
    let status = Command::new("ip").args(line.split(' ')).status();
    assert!(status.expect("ip, of iproute2").success(), "ip {line}");
}

/// Forwards each connection from the agent's network namespace to the server with the same address in this one.
fn forward_connections(listener: &TcpListener, server: &str) {
    for from in listener.incoming() {
        let (from, to) = (from.unwrap(), TcpStream::connect(server).unwrap());
        let back = (to.try_clone().unwrap(), from.try_clone().unwrap());
        std::thread::spawn(move || copy_until_closed(from, to));
        std::thread::spawn(move || copy_until_closed(back.0, back.1));
    }
}

fn copy_until_closed(mut from: TcpStream, mut to: TcpStream) {
    // Errors end the connection, which is fine.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}
