//! A pod: a network namespace that the released plugin has wired.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::harness::run_dir::Run;
use crate::lab::node::Node;
use crate::lab::topology::namespace::Namespace;

/// A pod of the lab.
pub struct Pod {
    pub name: String,
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub space: Namespace,
}

impl Pod {
    /// Make a namespace and call the plugin's ADD on `node`, as a container runtime would.
    pub fn add(run: &mut Run, node: &Node, name: &str, binaries: &Path) -> anyhow::Result<Self> {
        Self::add_of_pool(run, node, name, binaries, None)
    }

    /// The same for a pod that asks for a pool.
    pub fn add_of_pool(
        run: &mut Run,
        node: &Node,
        name: &str,
        binaries: &Path,
        pool: Option<&str>,
    ) -> anyhow::Result<Self> {
        let space = Namespace::network(run)?;
        let sandbox = Sandbox {
            pod: name,
            space: &space,
            pool,
        };
        let result = call(node, binaries, "ADD", &sandbox)?;
        let ips = result.get("ips").and_then(Value::as_array);
        let address = |ip: &Value| {
            let text = ip.get("address").and_then(Value::as_str);
            anyhow::Ok(
                text.context("an ip has an address")?
                    .parse::<IpNet>()?
                    .addr(),
            )
        };
        let addresses = ips.into_iter().flatten().map(address);
        Ok(Self {
            name: name.to_owned(),
            node: node.name.clone(),
            addresses: addresses.collect::<anyhow::Result<_>>()?,
            space,
        })
    }

    /// Call the plugin's DEL, as a container runtime would.
    pub fn delete(&self, node: &Node, binaries: &Path) -> anyhow::Result<()> {
        let sandbox = Sandbox {
            pod: &self.name,
            space: &self.space,
            pool: None,
        };
        call(node, binaries, "DEL", &sandbox).map(drop)
    }

    /// The MTU of its link.
    pub fn mtu(&self) -> anyhow::Result<u32> {
        let text = self.space.ip("-json link show dev eth0")?;
        let links: Value = serde_json::from_str(&text)?;
        let mtu = links.pointer("/0/mtu").and_then(Value::as_u64);
        mtu.and_then(|mtu| u32::try_from(mtu).ok())
            .context("a link has an MTU")
    }

    /// The pod's address of the same family.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        let same = |address: &&IpAddr| address.is_ipv4() == other.is_ipv4();
        self.addresses.iter().find(same).copied()
    }
}

/// The data of a pod in a container runtime.
struct Sandbox<'a> {
    pod: &'a str,
    space: &'a Namespace,
    /// The pool that it asks for by annotation.
    pool: Option<&'a str>,
}

/// Call the first plugin of the node's own configuration, the way libcni does.
fn call(node: &Node, binaries: &Path, verb: &str, sandbox: &Sandbox<'_>) -> anyhow::Result<Value> {
    let Sandbox { pod, space, pool } = sandbox;
    let list = node.conflist()?;
    let mut configuration = list
        .pointer("/plugins/0")
        .and_then(Value::as_object)
        .cloned();
    let configuration = configuration
        .as_mut()
        .context("the configuration has no plugin")?;
    for key in ["cniVersion", "name"] {
        configuration.insert(key.to_owned(), list.get(key).cloned().unwrap_or_default());
    }
    if let Some(pool) = pool {
        let annotations = json!({ "netweft.io/pools": pool });
        let config = json!({ "io.kubernetes.cri.pod-annotations": annotations });
        configuration.insert("runtimeConfig".to_owned(), config);
    }
    let plugin = configuration
        .get("type")
        .and_then(Value::as_str)
        .context("the plugin has no type")?
        .to_owned();
    let configuration = serde_json::to_vec(configuration)?;
    let mut child = node
        .space
        .command(binaries.join(&plugin))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("lab-{pod}"))
        .env("CNI_NETNS", space.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", binaries)
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}"),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start the plugin {plugin}"))?;
    child
        .stdin
        .take()
        .context("the plugin has no input")?
        .write_all(&configuration)?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{verb} for {pod}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    if output.stdout.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{verb} for {pod}: read the plugin's result"))
}
