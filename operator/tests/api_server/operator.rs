//! The operator's program, and queries of its cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use netweft_crds::condition::{ASSIGNED, is_true};
use netweft_crds::{NodeNetwork, NodeSubnet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::control_plane::{ControlPlane, NAMESPACE, Process, free_port};
use crate::objects::{all, eventually, token};

/// Time limit for conditions that usually take a second.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// An operator with only the rights of its service account.
pub struct Operator {
    /// The program.
    pub process: Process,
    /// Port of the admin server.
    pub port: u16,
}

impl Operator {
    /// Starts an operator that uses the API server directly.
    pub async fn start(plane: &ControlPlane, name: &str, flags: &[&str]) -> Self {
        Self::start_with_url(plane, plane.url(), name, flags).await
    }

    /// Starts an operator that uses the API server by `url`.
    pub async fn start_with_url(
        plane: &ControlPlane,
        url: &str,
        name: &str,
        flags: &[&str],
    ) -> Self {
        let token = token(&plane.admin(), "netweft-operator", None).await;
        let port = free_port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_netweft-operator"));
        command.env("KUBECONFIG", plane.kubeconfig(url, &token));
        command.args(["--namespace", NAMESPACE, "--identity", name]);
        command.args(["--log", "debug,hyper=info,tower=info"]);
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command.args(flags);
        let log = plane.dir.path().join(format!("{name}.log"));
        Self {
            process: Process::start(&mut command, &log),
            port,
        }
    }

    /// The response of the admin server, if it can be reached.
    pub async fn get(&self, path: &str) -> Option<String> {
        let address = ("127.0.0.1", self.port);
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await.ok()?;
        Some(response)
    }

    /// Whether `/readyz` succeeds.
    pub async fn is_ready(&self) -> Option<()> {
        let response = self.get("/readyz").await?;
        response.starts_with("HTTP/1.0 200").then_some(())
    }

    /// Whether the metrics contain this line.
    pub async fn has_metric(&self, line: &str) -> Option<()> {
        let metrics = self.get("/metrics").await?;
        metrics.lines().any(|other| other == line).then_some(())
    }

    /// Waits until the operator makes no more plans, so that the next plan has another cause.
    pub async fn wait_until_idle(&self) {
        const IDLE_TIME: Duration = Duration::from_secs(1);
        let (mut plans, mut since) = (String::new(), Instant::now());
        eventually("the operator is idle", WAIT_TIMEOUT, async || {
            let metrics = self.get("/metrics").await?;
            let count = "netweft_operator_plan_seconds_count";
            let now = metrics.lines().find(|line| line.starts_with(count))?;
            if now != plans {
                (plans, since) = (now.to_owned(), Instant::now());
            }
            (since.elapsed() > IDLE_TIME).then_some(())
        })
        .await;
    }

    /// Stops the operator with SIGTERM and waits for its end.
    pub fn stop(mut self) {
        self.process.signal("TERM");
        self.process.wait(Duration::from_secs(15));
    }
}

/// CIDRs of the blocks by node.
pub async fn owners(client: &Client) -> BTreeMap<String, BTreeSet<String>> {
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for subnet in all::<NodeSubnet>(client).await {
        let other = owners.entry(subnet.spec.node.clone()).or_default();
        other.insert(subnet.spec.cidr.to_string());
    }
    owners
}

/// Waits until the condition `Assigned` of `nodes` NodeNetworks is True.
pub async fn wait_until_assigned(client: &Client, nodes: usize) -> Vec<NodeNetwork> {
    eventually("every node has its block", WAIT_TIMEOUT, async || {
        let networks = all::<NodeNetwork>(client).await;
        (assigned(&networks) == nodes).then_some(networks)
    })
    .await
}

/// Number of NodeNetworks whose condition `Assigned` is True.
pub fn assigned(networks: &[NodeNetwork]) -> usize {
    let statuses = networks
        .iter()
        .filter_map(|network| network.status.as_ref());
    statuses
        .filter(|status| is_true(&status.conditions, ASSIGNED))
        .count()
}

/// Holder of the Lease.
pub async fn leader(client: &Client) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let lease = leases.get_opt("netweft-operator").await.unwrap()?;
    lease
        .spec?
        .holder_identity
        .filter(|holder| !holder.is_empty())
}
