//! Every privilege that the chart gives a program of the nodes is taken away once, and something must then fail that works
//! with it.
//!
//! On one worker the program gives way to a pod of the same template. Before each try the node is robbed of everything
//! that the program makes there, so that each privilege is needed to put it back.

mod agent;
mod bird;
mod relay;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::poll::until;
use crate::kind::checks::nodes::stay_away_from;
use crate::kind::host::on;
use crate::kind::kubectl::{apply, get, kubectl, text};

pub(crate) use crate::kind::checks::privileges::agent::agent_needs_each_of_its_privileges;
pub(crate) use crate::kind::checks::privileges::bird::bird_needs_each_of_its_privileges;
pub(crate) use crate::kind::checks::privileges::relay::relay_needs_each_of_its_privileges;

const NAME: &str = "robbed";
const NAMESPACE: &str = "netweft-system";

/// A program whose privileges are tried.
struct Program {
    /// Its DaemonSet.
    set: &'static str,
    /// Its name as a process.
    process: &'static str,
    /// What it makes on a node.
    works: &'static [Work],
    /// The name of the work that is lost without a privilege of this name; `None` for an unlisted privilege.
    lost: fn(&str) -> Option<&'static str>,
    /// How long something has to stay away to count as not coming back. With all privileges it is back within it.
    away: Duration,
}

/// What a program makes on a node: its name, how it is taken away, and how it is seen.
struct Work {
    name: &'static str,
    rob: &'static str,
    see: &'static str,
}

/// A privilege, and how it is taken from the pod's spec.
struct Privilege {
    name: String,
    take: Box<dyn Fn(&mut Value)>,
}

impl Program {
    fn needs_every_privilege(&self) -> anyhow::Result<()> {
        let nodes = get(&["nodes", "-l", "!node-role.kubernetes.io/control-plane"])?;
        let node = text(&nodes, "/items/0/metadata/name")?.to_owned();
        let template = get(&["daemonset", self.set, "-n", NAMESPACE])?
            .pointer("/spec/template")
            .cloned()
            .context("a DaemonSet has a template")?;
        let privileges = privileges(&template)?;
        stay_away_from(self.set, self.process, Some(&node))?;
        let outcome = self.try_all(&node, &template, &privileges);
        let removed = remove();
        stay_away_from(self.set, self.process, None)?;
        outcome.and(removed)
    }

    fn try_all(
        &self,
        node: &str,
        template: &Value,
        privileges: &[Privilege],
    ) -> anyhow::Result<()> {
        self.with_everything(node, template)?;
        let mut unneeded = Vec::new();
        for privilege in privileges {
            if let Err(error) = self.without(node, template, privilege) {
                unneeded.push(format!("{}: {error:#}", privilege.name));
            }
        }
        // The node was not broken by anything else.
        self.with_everything(node, template)?;
        ensure!(unneeded.is_empty(), "{}", unneeded.join("\n  "));
        Ok(())
    }

    /// The control: nothing is taken, and everything comes back.
    fn with_everything(&self, node: &str, template: &Value) -> anyhow::Result<()> {
        self.rob(node)?;
        start(node, template, &|_| {})?;
        let started = Instant::now();
        let back = until(
            &format!("{} to put everything back", self.set),
            self.away,
            || {
                self.works.iter().try_for_each(|work| {
                    seen(node, work).with_context(|| format!("no {}", work.name))
                })
            },
        );
        let took = started.elapsed().as_secs_f32();
        println!("  with everything it is all there after {took:.1} s");
        remove()?;
        back
    }

    fn without(&self, node: &str, template: &Value, privilege: &Privilege) -> anyhow::Result<()> {
        let name = (self.lost)(&privilege.name)
            .with_context(|| format!("say what is lost without {}", privilege.name))?;
        let work = self.works.iter().find(|work| work.name == name);
        let work = work.context("a work of that name")?;
        self.rob(node)?;
        start(node, template, &privilege.take)?;
        let end = Instant::now() + self.away;
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

    fn rob(&self, node: &str) -> anyhow::Result<()> {
        for work in self.works {
            on(node, &["sh", "-c", work.rob])?;
            ensure!(seen(node, work).is_err(), "{} is still there", work.name);
        }
        Ok(())
    }
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
        privilege("hostNetwork", |spec| {
            set(spec, "hostNetwork", json!(false));
            for container in containers(spec) {
                // A port of the host is the same as the container's only in the host's namespace.
                set(container, "ports", json!([]));
            }
        }),
        privilege("the user 0", |spec| {
            let context = json!({ "runAsUser": 65534, "runAsGroup": 65534 });
            set(spec, "securityContext", context);
        }),
    ];
    if template.pointer("/spec/automountServiceAccountToken") != Some(&json!(false)) {
        found.push(privilege("the token", |spec| {
            set(spec, "automountServiceAccountToken", json!(false));
        }));
    }
    for capability in list("/spec/containers/0/securityContext/capabilities/add") {
        let taken = capability.clone();
        let name = capability.as_str().context("a capability has a name")?;
        found.push(privilege(name, move |spec| {
            for container in containers(spec) {
                let added = container.pointer_mut("/securityContext/capabilities/add");
                if let Some(added) = added.and_then(Value::as_array_mut) {
                    added.retain(|capability| *capability != taken);
                }
            }
        }));
    }
    // What is optional is not there in this cluster; the check with a router needs the agents' passwords.
    let optional =
        |volume: &&Value| volume.pointer("/secret/optional").and_then(Value::as_bool) == Some(true);
    for volume in list("/spec/volumes").filter(|volume| !optional(volume)) {
        let name = text(volume, "/name")?.to_owned();
        found.push(privilege(&format!("the volume {name}"), move |spec| {
            for container in containers(spec) {
                let mounts = container.get_mut("volumeMounts");
                if let Some(mounts) = mounts.and_then(Value::as_array_mut) {
                    mounts.retain(|mount| mount.get("name") != Some(&json!(name)));
                }
            }
        }));
    }
    Ok(found)
}

fn privilege(name: &str, take: impl Fn(&mut Value) + 'static) -> Privilege {
    Privilege {
        name: name.to_owned(),
        take: Box::new(take),
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
