//! Check that the node programs need each privilege that the chart grants: without the privilege, the program does not create one of
//! its resources on the node.
//!
//! On one worker, a pod with the same template replaces the pod of the DaemonSet. Before each run, all resources of the program are
//! deleted from the node, so that the program has to create them again.

mod agent;
mod bird;
mod relay;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::poll::until;
use crate::kind::checks::nodes::exclude_daemonset_from;
use crate::kind::host::on;
use crate::kind::kubectl::{apply, get, kubectl, text};

pub(crate) use crate::kind::checks::privileges::agent::agent_needs_each_of_its_privileges;
pub(crate) use crate::kind::checks::privileges::bird::bird_needs_each_of_its_privileges;
pub(crate) use crate::kind::checks::privileges::relay::relay_needs_each_of_its_privileges;

/// Name of the pod that runs without a privilege.
const NAME: &str = "privilege-check";
const NAMESPACE: &str = "netweft-system";

/// A program whose privileges are checked.
struct Program {
    /// Name of the DaemonSet.
    set: &'static str,
    /// Name of the process.
    process: &'static str,
    /// The resources that the program creates on a node.
    resources: &'static [Resource],
    /// The name of the resource that is missing without the privilege of this name; `None` for an unlisted privilege.
    missing_without: fn(&str) -> Option<&'static str>,
    /// How long a resource must be missing. With all privileges, the program creates all resources within this time.
    timeout: Duration,
}

/// A resource of a program on a node.
struct Resource {
    name: &'static str,
    /// Script that deletes the resource.
    delete: &'static str,
    /// Script that succeeds if the resource exists.
    exists: &'static str,
}

/// A privilege, and the function that removes the privilege from the spec of a pod.
struct Privilege {
    name: String,
    remove: Box<dyn Fn(&mut Value)>,
}

impl Program {
    fn check_every_privilege(&self) -> anyhow::Result<()> {
        let nodes = get(&["nodes", "-l", "!node-role.kubernetes.io/control-plane"])?;
        let node = text(&nodes, "/items/0/metadata/name")?.to_owned();
        let template = get(&["daemonset", self.set, "-n", NAMESPACE])?
            .pointer("/spec/template")
            .cloned()
            .context("the DaemonSet has no template")?;
        let privileges = privileges(&template)?;
        exclude_daemonset_from(self.set, self.process, Some(&node))?;
        let outcome = self.check_all(&node, &template, &privileges);
        let deleted = delete_pod();
        exclude_daemonset_from(self.set, self.process, None)?;
        outcome.and(deleted)
    }

    fn check_all(
        &self,
        node: &str,
        template: &Value,
        privileges: &[Privilege],
    ) -> anyhow::Result<()> {
        self.check_all_privileges_suffice(node, template)?;
        let mut unneeded = Vec::new();
        for privilege in privileges {
            if let Err(error) = self.check_without(node, template, privilege) {
                unneeded.push(format!("{}: {error:#}", privilege.name));
            }
        }
        // The second control shows that no other failure of the node has prevented the resources.
        self.check_all_privileges_suffice(node, template)?;
        ensure!(unneeded.is_empty(), "{}", unneeded.join("\n  "));
        Ok(())
    }

    /// The control: with all privileges, the program creates all resources.
    fn check_all_privileges_suffice(&self, node: &str, template: &Value) -> anyhow::Result<()> {
        self.delete_resources(node)?;
        start_pod(node, template, &|_| {})?;
        let started = Instant::now();
        let created = until(
            &format!("{} to create all resources", self.set),
            self.timeout,
            || {
                self.resources.iter().try_for_each(|resource| {
                    exists(node, resource)
                        .with_context(|| format!("{} does not exist", resource.name))
                })
            },
        );
        let seconds = started.elapsed().as_secs_f32();
        println!("  with all privileges: all resources after {seconds:.1} s");
        delete_pod()?;
        created
    }

    fn check_without(
        &self,
        node: &str,
        template: &Value,
        privilege: &Privilege,
    ) -> anyhow::Result<()> {
        let name = (self.missing_without)(&privilege.name).with_context(|| {
            format!(
                "the check does not list the resource that is missing without {}",
                privilege.name
            )
        })?;
        let resource = self.resources.iter().find(|resource| resource.name == name);
        let resource = resource.with_context(|| format!("the check has no resource {name}"))?;
        self.delete_resources(node)?;
        start_pod(node, template, &privilege.remove)?;
        let end = Instant::now() + self.timeout;
        let mut outcome = Ok(());
        while outcome.is_ok() && Instant::now() < end {
            sleep(Duration::from_millis(500));
            if exists(node, resource).is_ok() {
                outcome = Err(anyhow::anyhow!(
                    "{} was created without the privilege",
                    resource.name
                ));
            }
        }
        if outcome.is_ok() {
            println!("  without {}: no {}", privilege.name, resource.name);
        }
        delete_pod()?;
        outcome
    }

    fn delete_resources(&self, node: &str) -> anyhow::Result<()> {
        for resource in self.resources {
            on(node, &["sh", "-c", resource.delete])?;
            ensure!(
                exists(node, resource).is_err(),
                "{} still exists on {node}",
                resource.name
            );
        }
        Ok(())
    }
}

fn exists(node: &str, resource: &Resource) -> anyhow::Result<()> {
    on(node, &["sh", "-c", resource.exists]).map(drop)
}

/// Start a pod of the template on a node, after `change` has changed the spec.
fn start_pod(node: &str, template: &Value, change: &dyn Fn(&mut Value)) -> anyhow::Result<()> {
    let mut spec = template
        .get("spec")
        .cloned()
        .context("the template has no spec")?;
    change(&mut spec);
    set(&mut spec, "nodeName", json!(node));
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        // Without the labels of the template, because the DaemonSet would adopt the pod.
        "metadata": { "name": NAME, "namespace": NAMESPACE },
        "spec": spec,
    });
    apply(&pod.to_string())
}

fn delete_pod() -> anyhow::Result<()> {
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

/// The privileges of the template: host network, user, service account token, capabilities and volumes. A new capability or volume of
/// the chart fails the check until `missing_without` lists it.
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
                // With hostNetwork, hostPort is set to containerPort. Without it, the ports would become port mappings.
                set(container, "ports", json!([]));
            }
        }),
        privilege("the user 0", |spec| {
            let context = json!({ "runAsUser": 65534, "runAsGroup": 65534 });
            set(spec, "securityContext", context);
        }),
    ];
    if template.pointer("/spec/automountServiceAccountToken") != Some(&json!(false)) {
        found.push(privilege("the service account token", |spec| {
            set(spec, "automountServiceAccountToken", json!(false));
        }));
    }
    for capability in list("/spec/containers/0/securityContext/capabilities/add") {
        let removed = capability.clone();
        let name = capability
            .as_str()
            .context("a capability is not a string")?;
        found.push(privilege(name, move |spec| {
            for container in containers(spec) {
                let added = container.pointer_mut("/securityContext/capabilities/add");
                if let Some(added) = added.and_then(Value::as_array_mut) {
                    added.retain(|capability| *capability != removed);
                }
            }
        }));
    }
    // This cluster has no Secret for an optional volume. The check with the router covers the passwords of the agents.
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

fn privilege(name: &str, remove: impl Fn(&mut Value) + 'static) -> Privilege {
    Privilege {
        name: name.to_owned(),
        remove: Box::new(remove),
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
