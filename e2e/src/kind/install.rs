//! Installing netweft as the README says: `helm install`, `kubectl apply`, wait.
//! The mode and the pools are the suite's own (`e2e/manifests`).

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::harness::command::output;
use crate::kind::kubectl::{apply, kubectl, rollout_status};
use crate::lab::{Families, LabMode};

/// What to install.
pub struct Install {
    /// The project's folder.
    pub project: PathBuf,
    /// Tag of the images.
    pub tag: String,
    /// Tag of BIRD's image.
    pub bird_tag: String,
    /// How packets travel; the manifest's own is vxlan.
    pub mode: LabMode,
    /// Whether operator and agents speak to the API server itself and not by its Service: what is seen after an outage is then
    /// theirs and not kube-proxy's.
    pub direct: bool,
    /// `podInterface` of the pools.
    pub pod_interface: String,
    /// Which of the pools.
    pub families: Families,
}

/// Install the chart, the mode and the pools; everything is ready when this returns. Returns how long that took.
///
/// # Errors
/// helm or kubectl fail, or something does not become ready.
pub fn install(install: &Install) -> anyhow::Result<Duration> {
    let started = Instant::now();
    helm_install(install)?;
    apply_objects(install)?;
    wait("nodes", "condition=Ready")?;
    let took = started.elapsed();
    for kind in ["nodenetworks", "ippools", "networkmodes"] {
        wait(kind, "condition=Ready")?;
    }
    rollout_status("netweft-system", "deployment,daemonset", "120s")?;
    Ok(took)
}

/// Whether netweft is on the cluster, or was.
#[must_use]
pub fn is_installed() -> bool {
    kubectl(&["get", "crd", "ippools.netweft.io"]).is_ok()
}

/// Install the chart, or upgrade to it.
///
/// # Errors
/// helm fails.
pub fn helm_install(install: &Install) -> anyhow::Result<()> {
    let mut helm = Command::new("helm");
    let api_server = install.direct.then(api_server).transpose()?;
    helm.args(["upgrade", "--install", "netweft"])
        .arg(install.project.join("charts/netweft"));
    helm.args(["--namespace", "netweft-system", "--create-namespace"]);
    // Mode and pools come by kubectl, as by a GitOps pipeline.
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

/// The address of the first control plane.
fn api_server() -> anyhow::Result<String> {
    let path = r#"jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}"#;
    let label = "node-role.kubernetes.io/control-plane";
    let addresses = kubectl(&["get", "nodes", "-l", label, "-o", path])?;
    let first = addresses.split_whitespace().next();
    Ok(first.context("a control plane has an address")?.to_owned())
}

/// The Secret of the router that the checks of BGP start.
pub const PASSWORD_SECRET: &str = "netweft-router";

const NETWORK_MODE: &str = include_str!("../../manifests/networkmode.yaml");
const POOL_IPV4: &str = include_str!("../../manifests/ippool.yaml");
const POOL_IPV6: &str = include_str!("../../manifests/ippool-v6.yaml");

/// The mode and the pools, with the mode and the kind of pods that were asked for.
fn apply_objects(install: &Install) -> anyhow::Result<()> {
    let wanted = format!("podInterface: {}", install.pod_interface);
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
    let pools = pools.map(|(pool, _)| pool.replace("podInterface: routed", &wanted));
    for object in std::iter::once(mode).chain(pools) {
        // The API server refuses pools for a moment after the chart has brought their kind: the policy against overlapping
        // pools looks at all of them, and does not know them yet.
        crate::harness::poll::until("the mode and the pools", Duration::from_secs(30), || {
            apply(&object).context(
                "apply the mode and the pools; after another kind of pods run `make down` first",
            )
        })?;
    }
    Ok(())
}

fn wait(kind: &str, condition: &str) -> anyhow::Result<()> {
    crate::harness::poll::until(
        &format!("{kind} to be there"),
        Duration::from_secs(60),
        || {
            anyhow::ensure!(
                !kubectl(&["get", kind, "-o", "name"])?.trim().is_empty(),
                "there are no {kind}"
            );
            Ok(())
        },
    )?;
    let waited = kubectl(&[
        "wait",
        kind,
        "--all",
        &format!("--for={condition}"),
        "--timeout=120s",
    ]);
    waited.map(drop).with_context(|| {
        format!(
            "{kind} as they are now:\n{}",
            kubectl(&["get", kind, "-o", "wide"]).unwrap_or_default()
        )
    })
}
