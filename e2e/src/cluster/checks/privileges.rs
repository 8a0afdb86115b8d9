//! Every privilege that the chart gives the agent is taken away once, and something must then fail that works with it.
//!
//! On one worker the agent gives way to a pod of the same template. Before each try the node is robbed of everything
//! that the agent makes there, so that each privilege is needed to put it back.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::Cluster;
use super::nodes::agents_stay_away_from;
use crate::cluster::kubectl::{apply, get, kubectl, text};
use crate::cluster::machine::on;
use crate::poll::until;

const NAME: &str = "robbed-agent";
const NAMESPACE: &str = "netweft-system";
/// How long something has to stay away to count as not coming back. With all privileges it is back in three seconds.
const AWAY: Duration = Duration::from_secs(20);

/// What the agent makes on a node: its name, how it is taken away, and how it is seen.
const WORKS: [Work; 5] = [
    Work {
        name: "plugin",
        rob: "rm -f /opt/cni/bin/netweft",
        see: "test -x /opt/cni/bin/netweft",
    },
    Work {
        name: "configuration of the runtime",
        rob: "rm -f /etc/cni/net.d/10-netweft.conflist",
        see: "test -s /etc/cni/net.d/10-netweft.conflist",
    },
    Work {
        name: "blocks for the plugin",
        rob: "rm -f /run/netweft/node.json",
        see: "test -s /run/netweft/node.json",
    },
    Work {
        name: "tunnel",
        rob: "ip link delete nw-vx4096 || true",
        see: "ip link show nw-vx4096",
    },
    Work {
        name: "forwarding",
        rob: "sysctl -qw net.ipv4.ip_forward=0",
        see: "test $(cat /proc/sys/net/ipv4/ip_forward) = 1",
    },
];

struct Work {
    name: &'static str,
    rob: &'static str,
    see: &'static str,
}

/// A privilege, how it is taken from the pod's spec, and what then stays away.
struct Privilege {
    name: String,
    take: Box<dyn Fn(&mut Value)>,
    lost: &'static str,
}

pub(super) fn every_privilege_of_the_agent_is_needed(_: &mut Cluster) -> anyhow::Result<()> {
    let nodes = get(&["nodes", "-l", "!node-role.kubernetes.io/control-plane"])?;
    let node = text(&nodes, "/items/0/metadata/name")?.to_owned();
    let template = get(&["daemonset", "netweft-agent", "-n", NAMESPACE])?
        .pointer("/spec/template")
        .cloned()
        .context("a DaemonSet has a template")?;
    let privileges = privileges(&template)?;
    agents_stay_away_from(Some(&node))?;
    let outcome = try_all(&node, &template, &privileges);
    let removed = remove();
    agents_stay_away_from(None)?;
    outcome.and(removed)
}

fn try_all(node: &str, template: &Value, privileges: &[Privilege]) -> anyhow::Result<()> {
    with_everything(node, template)?;
    let mut unneeded = Vec::new();
    for privilege in privileges {
        if let Err(error) = without(node, template, privilege) {
            unneeded.push(format!("{}: {error:#}", privilege.name));
        }
    }
    // The node was not broken by anything else.
    with_everything(node, template)?;
    ensure!(unneeded.is_empty(), "{}", unneeded.join("\n  "));
    Ok(())
}

/// The control: nothing is taken, and everything comes back.
fn with_everything(node: &str, template: &Value) -> anyhow::Result<()> {
    rob(node)?;
    start(node, template, &|_| {})?;
    let back = until(
        "the agent to put everything back",
        Duration::from_secs(60),
        || {
            WORKS
                .iter()
                .try_for_each(|work| seen(node, work).with_context(|| format!("no {}", work.name)))
        },
    );
    remove()?;
    back
}

fn without(node: &str, template: &Value, privilege: &Privilege) -> anyhow::Result<()> {
    rob(node)?;
    start(node, template, &privilege.take)?;
    let work = WORKS
        .iter()
        .find(|work| work.name == privilege.lost)
        .context("a work of that name")?;
    let end = Instant::now() + AWAY;
    let mut verdict = Ok(());
    while verdict.is_ok() && Instant::now() < end {
        sleep(Duration::from_millis(500));
        if seen(node, work).is_ok() {
            verdict = Err(anyhow::anyhow!("{} came back without it", work.name));
        }
    }
    if verdict.is_ok() {
        println!("  without {}: no {}", privilege.name, work.name);
    }
    remove()?;
    verdict
}

fn rob(node: &str) -> anyhow::Result<()> {
    for work in &WORKS {
        on(node, &["sh", "-c", work.rob])?;
        ensure!(seen(node, work).is_err(), "{} is still there", work.name);
    }
    Ok(())
}

fn seen(node: &str, work: &Work) -> anyhow::Result<()> {
    on(node, &["sh", "-c", work.see]).map(drop)
}

fn start(node: &str, template: &Value, take: &dyn Fn(&mut Value)) -> anyhow::Result<()> {
    let mut spec = template
        .get("spec")
        .cloned()
        .context("a template has a spec")?;
    take(&mut spec);
    set(&mut spec, "nodeName", json!(node));
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        // None of the DaemonSet's labels: it would take the pod for its own.
        "metadata": { "name": NAME, "namespace": NAMESPACE },
        "spec": spec,
    });
    apply(&pod.to_string())
}

fn remove() -> anyhow::Result<()> {
    kubectl(&[
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        NAME,
        "--ignore-not-found",
        "--grace-period=1",
        "--timeout=60s",
    ])
    .map(drop)
}

/// What there is to take, read from the template: a privilege that is added to the chart is tried without being
/// listed here, or found to be unknown.
fn privileges(template: &Value) -> anyhow::Result<Vec<Privilege>> {
    let list = |pointer: &str| {
        template
            .pointer(pointer)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let mut found = vec![
        privilege("the host's network namespace", "tunnel", |spec| {
            set(spec, "hostNetwork", json!(false));
            for container in containers(spec) {
                // A port of the host is the same as the container's only in the host's namespace.
                set(container, "ports", json!([]));
            }
        }),
        privilege("the user 0", "blocks for the plugin", |spec| {
            let nobody = json!({ "runAsUser": 65534, "runAsGroup": 65534 });
            set(spec, "securityContext", nobody);
        }),
        privilege("the token", "tunnel", |spec| {
            set(spec, "automountServiceAccountToken", json!(false));
        }),
    ];
    for capability in list("/spec/containers/0/securityContext/capabilities/add") {
        ensure!(
            capability == "NET_ADMIN",
            "say what is lost without {capability}"
        );
        found.push(privilege("NET_ADMIN", "tunnel", |spec| {
            for container in containers(spec) {
                let dropped = json!({ "capabilities": { "drop": ["ALL"] } });
                set(container, "securityContext", dropped);
            }
        }));
    }
    for volume in list("/spec/volumes") {
        let name = text(volume, "/name")?.to_owned();
        let lost = match name.as_str() {
            "run" => "blocks for the plugin",
            "cni-bin" => "plugin",
            "cni-conf" => "configuration of the runtime",
            "sysctl" => "forwarding",
            other => bail!("say what is lost without the volume {other}"),
        };
        found.push(privilege(
            &format!("the volume {name}"),
            lost,
            move |spec| {
                for container in containers(spec) {
                    let mounts = container.get_mut("volumeMounts");
                    if let Some(mounts) = mounts.and_then(Value::as_array_mut) {
                        mounts.retain(|mount| mount.get("name") != Some(&json!(name)));
                    }
                }
            },
        ));
    }
    Ok(found)
}

fn privilege(name: &str, lost: &'static str, take: impl Fn(&mut Value) + 'static) -> Privilege {
    Privilege {
        name: name.to_owned(),
        take: Box::new(take),
        lost,
    }
}

fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(field.to_owned(), value);
    }
}

fn containers(spec: &mut Value) -> impl Iterator<Item = &mut Value> {
    let Some(spec) = spec.as_object_mut() else {
        return Vec::new().into_iter();
    };
    let lists = spec
        .iter_mut()
        .filter(|(key, _)| ["containers", "initContainers"].contains(&key.as_str()));
    let all: Vec<&mut Value> = lists
        .filter_map(|(_, list)| list.as_array_mut())
        .flatten()
        .collect();
    all.into_iter()
}
