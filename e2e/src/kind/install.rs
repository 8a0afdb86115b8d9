//! Installation of netweft as in the README: `helm install`, `kubectl apply`, wait. The NetworkMode and the IPPools are those of
//! `e2e/manifests`.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::harness::command::output;
use crate::harness::poll::until;
use crate::kind::kubectl::{apply, kubectl, rollout_status};
use crate::lab::{Families, LabMode};

/// The parameters of an installation.
pub struct Install {
    /// The directory of the repository.
    pub project: PathBuf,
    /// Tag of the images.
    pub tag: String,
    /// Tag of the image of BIRD.
    pub bird_tag: String,
    /// The mode of the default NetworkMode. The manifest has vxlan.
    pub mode: LabMode,
    /// Whether operator and agents connect to the address of the API server, not to its Service. The recovery after an outage then
    /// does not depend on kube-proxy.
    pub direct: bool,
    /// `podInterface` of the pools.
    pub pod_interface: String,
    /// The address families of the pools.
    pub families: Families,
}

/// Install the chart, the NetworkMode and the pools, and wait until everything is ready. Returns the time until all nodes were
/// Ready.
///
/// # Errors
/// helm or kubectl fails, or an object does not become ready.
pub fn install(install: &Install) -> anyhow::Result<Duration> {
    let started = Instant::now();
    helm_install(install)?;
    apply_objects(install)?;
    wait("nodes", "condition=Ready")?;
    let elapsed = started.elapsed();
    for kind in ["nodenetworks", "ippools", "networkmodes"] {
        wait(kind, "condition=Ready")?;
    }
    rollout_status("netweft-system", "deployment,daemonset", "120s")?;
    Ok(elapsed)
}

/// Whether the cluster has the CRDs of netweft. They remain after `helm uninstall`.
#[must_use]
pub fn is_installed() -> bool {
    kubectl(&["get", "crd", "ippools.netweft.io"]).is_ok()
}

/// Install or upgrade the release.
///
/// # Errors
/// helm fails.
pub fn helm_install(install: &Install) -> anyhow::Result<()> {
    let mut helm = Command::new("helm");
    let api_server = install.direct.then(api_server).transpose()?;
    helm.args(["upgrade", "--install", "netweft"])
        .arg(install.project.join("charts/netweft"));
    helm.args(["--namespace", "netweft-system", "--create-namespace"]);
    // kubectl applies the NetworkMode and the pools, as a GitOps pipeline does.
    helm.args([
        "--set",
        &format!(
            "image.repository=netweft,image.tag={},bird.image.tag={},bird.passwordSecrets={{{PASSWORD_SECRET}}}",
            install.tag, install.bird_tag
        ),
        "--set-json",
        "networkModes=[]",
        "--set-json",
        "pools=[]",
    ]);
    helm.args(["--set", "image.pullPolicy=Never"]);
    if let Some(address) = api_server {
        let values = format!("apiServer.host={address},apiServer.port=6443");
        helm.args(["--set", &values]);
    }
    output(&mut helm).context("install the chart").map(drop)
}

/// The internal IP address of the first control plane node.
fn api_server() -> anyhow::Result<String> {
    let path = r#"jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}"#;
    let label = "node-role.kubernetes.io/control-plane";
    let addresses = kubectl(&["get", "nodes", "-l", label, "-o", path])?;
    let first = addresses.split_whitespace().next();
    Ok(first
        .context("no control plane node has an address")?
        .to_owned())
}

/// The Secret with the BGP password of the router that the BGP checks start.
pub const PASSWORD_SECRET: &str = "netweft-router";

const NETWORK_MODE: &str = include_str!("../../manifests/networkmode.yaml");
const POOL_IPV4: &str = include_str!("../../manifests/ippool.yaml");
const POOL_IPV6: &str = include_str!("../../manifests/ippool-v6.yaml");

/// Apply the NetworkMode and the pools with the mode, the pod interface and the families of `install`.
fn apply_objects(install: &Install) -> anyhow::Result<()> {
    let pod_interface = format!("podInterface: {}", install.pod_interface);
    let mode = if install.mode == LabMode::Vxlan {
        NETWORK_MODE.to_owned()
    } else {
        let object = serde_json::json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "NetworkMode",
            "metadata": { "name": "default" }, "spec": install.mode.spec() });
        object.to_string()
    };
    let pools = [(POOL_IPV4, true), (POOL_IPV6, false)];
    let pools = pools.into_iter().filter(|(_, ipv4)| {
        let mut pools = install.families.pools();
        pools.any(|pool| pool.addr().is_ipv4() == *ipv4)
    });
    let pools = pools.map(|(pool, _)| pool.replace("podInterface: routed", &pod_interface));
    for object in std::iter::once(mode).chain(pools) {
        // For a short time after the installation of the CRDs, the API server refuses IPPools: the ValidatingAdmissionPolicy
        // against overlapping pools has IPPools as parameters, and the API server does not serve them to the policy yet.
        until(
            "the NetworkMode and the pools",
            Duration::from_secs(30),
            || {
                apply(&object).context(
                "apply the NetworkMode and the pools; to change podInterface, run `make down` first",
            )
            },
        )?;
    }
    Ok(())
}

fn wait(kind: &str, condition: &str) -> anyhow::Result<()> {
    until(&format!("{kind} to exist"), Duration::from_secs(60), || {
        anyhow::ensure!(
            !kubectl(&["get", kind, "-o", "name"])?.trim().is_empty(),
            "there are no {kind}"
        );
        Ok(())
    })?;
    let waited = kubectl(&[
        "wait",
        kind,
        "--all",
        &format!("--for={condition}"),
        "--timeout=120s",
    ]);
    waited.map(drop).with_context(|| {
        format!(
            "current state of {kind}:\n{}",
            kubectl(&["get", kind, "-o", "wide"]).unwrap_or_default()
        )
    })
}
