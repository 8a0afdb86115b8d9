//! A pod: a network namespace that the released plugin has connected.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::harness::run_dir::Run;
use crate::lab::node::Node;
use crate::lab::topology::namespace::Namespace;

/// A pod of the lab.
pub struct Pod {
    pub name: String,
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub namespace: Namespace,
}

impl Pod {
    /// Creates a namespace and calls ADD of the plugin on `node`, as a container runtime does.
    pub fn add(run: &mut Run, node: &Node, name: &str, binaries: &Path) -> anyhow::Result<Self> {
        Self::add_of_pool(run, node, name, binaries, None)
    }

    /// Like [`Pod::add`], with an annotation that requests a pool.
    pub fn add_of_pool(
        run: &mut Run,
        node: &Node,
        name: &str,
        binaries: &Path,
        pool: Option<&str>,
    ) -> anyhow::Result<Self> {
        let namespace = Namespace::network(run)?;
        let sandbox = Sandbox {
            pod: name,
            namespace: &namespace,
            pool,
        };
        let result = call(node, binaries, "ADD", &sandbox)?;
        let ips = result.get("ips").and_then(Value::as_array);
        let address = |ip: &Value| {
            let text = ip.get("address").and_then(Value::as_str);
            anyhow::Ok(
                text.context("an element of ips has no address")?
                    .parse::<IpNet>()?
                    .addr(),
            )
        };
        let addresses = ips.into_iter().flatten().map(address);
        Ok(Self {
            name: name.to_owned(),
            node: node.name.clone(),
            addresses: addresses.collect::<anyhow::Result<_>>()?,
            namespace,
        })
    }

    /// Calls DEL of the plugin, as a container runtime does.
    pub fn delete(&self, node: &Node, binaries: &Path) -> anyhow::Result<()> {
        let sandbox = Sandbox {
            pod: &self.name,
            namespace: &self.namespace,
            pool: None,
        };
        call(node, binaries, "DEL", &sandbox).map(drop)
    }

    /// The MTU of the pod's link, in bytes.
    pub fn mtu(&self) -> anyhow::Result<u32> {
        let text = self.namespace.ip("-json link show dev eth0")?;
        let links: Value = serde_json::from_str(&text)?;
        let mtu = links.pointer("/0/mtu").and_then(Value::as_u64);
        mtu.and_then(|mtu| u32::try_from(mtu).ok())
            .context("the link has no MTU")
    }

    /// The pod's address of the family of `other`.
    pub fn address_of_family(&self, other: IpAddr) -> Option<IpAddr> {
        let same_family = |address: &&IpAddr| address.is_ipv4() == other.is_ipv4();
        self.addresses.iter().find(same_family).copied()
    }
}

/// The parameters of a CNI call.
struct Sandbox<'a> {
    pod: &'a str,
    namespace: &'a Namespace,
    /// The pool of the pod's annotation.
    pool: Option<&'a str>,
}

/// The configuration of the first plugin of the node, as libcni passes it to the plugin.
fn plugin_configuration(node: &Node, pool: Option<&str>) -> anyhow::Result<Map<String, Value>> {
    let list = node.conflist()?;
    let plugin = list.pointer("/plugins/0").and_then(Value::as_object);
    let mut configuration = plugin
        .cloned()
        .context("the CNI configuration has no plugin")?;
    for key in ["cniVersion", "name"] {
        configuration.insert(key.to_owned(), list.get(key).cloned().unwrap_or_default());
    }
    if let Some(pool) = pool {
        let annotations = json!({ "netweft.io/pools": pool });
        let config = json!({ "io.kubernetes.cri.pod-annotations": annotations });
        configuration.insert("runtimeConfig".to_owned(), config);
    }
    Ok(configuration)
}

/// Calls the first plugin of the node's CNI configuration, as libcni does.
fn call(node: &Node, binaries: &Path, verb: &str, sandbox: &Sandbox<'_>) -> anyhow::Result<Value> {
    let Sandbox {
        pod,
        namespace,
        pool,
    } = sandbox;
    let configuration = plugin_configuration(node, *pool)?;
    let plugin = configuration
        .get("type")
        .and_then(Value::as_str)
        .context("the plugin has no type")?
        .to_owned();
    let configuration = serde_json::to_vec(&configuration)?;
    let mut child = node
        .namespace
        .command(binaries.join(&plugin))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("lab-{pod}"))
        .env("CNI_NETNS", namespace.path())
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
        .context("the plugin has no standard input")?
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
