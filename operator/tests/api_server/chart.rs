//! What the chart renders, and which values it refuses. No control plane is needed.

use std::process::{Command, Output};

use serde_json::Value;

use crate::control_plane::program;

fn helm(arguments: &[&str]) -> Output {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/netweft");
    let mut helm = Command::new(program("helm"));
    helm.args([
        "template",
        "netweft",
        chart,
        "--namespace",
        "netweft-system",
    ])
    .args(arguments)
    .output()
    .unwrap()
}

/// The chart's objects with these arguments of helm.
pub fn rendered(arguments: &[&str]) -> Vec<Value> {
    let output = helm(arguments);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
    objects
        .into_iter()
        .filter(|object| !object.is_null())
        .collect()
}

/// Those of one kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}

fn containers(workload: &Value) -> Vec<&Value> {
    let pod = &workload["spec"]["template"]["spec"];
    let lists = ["initContainers", "containers"]
        .into_iter()
        .filter_map(|list| pod[list].as_array());
    lists.flatten().collect()
}

fn workloads(objects: &[Value]) -> Vec<&Value> {
    [
        of_kind(objects, "Deployment"),
        of_kind(objects, "DaemonSet"),
    ]
    .concat()
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for wrong in [
        "unknown=1",
        "operator.replica=2",
        "agent.port=0",
        "udpRelay.queues=17",
        "apiServer.host=192.0.2.1",
        "operator.orphanGrace=ten",
        "operator.leaseDuration=1s",
        "image.pullPolicy=Sometimes",
        "logging.format=xml",
        "pools[0].name=p,pools[0].cidr=10.0.0.0/16",
    ] {
        let output = helm(&["--set", wrong]);
        assert!(!output.status.success(), "{wrong}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("don't meet the specifications of the schema"),
            "{wrong}: {said}"
        );
    }
}

#[test]
fn every_container_has_the_least_privileges() {
    let objects = rendered(&[]);
    for workload in workloads(&objects) {
        let pod = &workload["spec"]["template"]["spec"];
        assert_eq!(
            (&pod["hostPID"], &pod["hostIPC"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        for container in containers(workload) {
            let context = &container["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["privileged"], Value::Null);
            assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
            let added = if container["name"] == "agent" || container["name"] == "udp-relay" {
                serde_json::json!(["NET_ADMIN"])
            } else {
                Value::Null
            };
            assert_eq!(
                context["capabilities"]["add"], added,
                "{}",
                container["name"]
            );
        }
    }
}

#[test]
fn only_the_installer_can_write_the_plugins() {
    let objects = rendered(&[]);
    let mut writers = Vec::new();
    for container in workloads(&objects).into_iter().flat_map(containers) {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        if mounts.into_iter().any(|mount| mount["name"] == "cni-bin") {
            writers.push(container["name"].as_str().unwrap());
        }
    }
    assert_eq!(writers, ["install"]);
}

/// Two relays are on a node during an update: a port that the scheduler knows of would keep them apart.
#[test]
fn a_new_relay_can_stand_beside_the_old_one() {
    let objects = rendered(&[]);
    let relay = of_kind(&objects, "DaemonSet")
        .into_iter()
        .find(|set| set["metadata"]["name"] == "netweft-udp-relay")
        .unwrap();
    let update = &relay["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!(
        (&update["maxSurge"], &update["maxUnavailable"]),
        (&1.into(), &0.into())
    );
    assert!(
        containers(relay)
            .iter()
            .all(|container| container["ports"].is_null())
    );
    let without = rendered(&["--set", "udpRelay.enabled=false"]);
    assert_eq!(of_kind(&without, "DaemonSet").len(), 1);
}

#[test]
fn images_come_from_the_registry_that_is_set() {
    let objects = rendered(&[
        "--set",
        "image.registry=registry.example.org:5000,image.tag=t1",
    ]);
    let mut images: Vec<_> = workloads(&objects)
        .into_iter()
        .flat_map(containers)
        .map(|c| c["image"].clone())
        .collect();
    images.dedup();
    assert_eq!(
        images,
        [
            "registry.example.org:5000/netweft/operator:t1",
            "registry.example.org:5000/netweft/agent:t1",
            "registry.example.org:5000/netweft/udp-relay:t1"
        ]
    );
}

#[test]
fn all_programs_with_a_token_take_the_address_of_the_api_server() {
    let objects = rendered(&["--set", "apiServer.host=192.0.2.1,apiServer.port=6443"]);
    let has_token = |workload: &&Value| {
        workload["spec"]["template"]["spec"]["automountServiceAccountToken"] != false
    };
    let with_token: Vec<&Value> = workloads(&objects).into_iter().filter(has_token).collect();
    assert_eq!(with_token.len(), 2, "the operator and the agent");
    for container in with_token.into_iter().flat_map(containers) {
        let value = |name: &str| {
            let variables = container["env"].as_array().unwrap();
            variables
                .iter()
                .find(|variable| variable["name"] == name)
                .unwrap()["value"]
                .clone()
        };
        assert_eq!(value("KUBERNETES_SERVICE_HOST"), "192.0.2.1");
        assert_eq!(value("KUBERNETES_SERVICE_PORT"), "6443");
    }
}

#[test]
fn the_default_objects_stay_and_can_be_left_out() {
    let objects = rendered(&[]);
    for kind in ["NetworkMode", "IPPool"] {
        let found = of_kind(&objects, kind);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0]["metadata"]["annotations"]["helm.sh/resource-policy"],
            "keep"
        );
    }
    let objects = rendered(&["--set-json", "pools=[]", "--set-json", "networkModes=[]"]);
    assert!(of_kind(&objects, "NetworkMode").is_empty() && of_kind(&objects, "IPPool").is_empty());
}

#[test]
fn the_chart_is_lint_free() {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/netweft");
    let output = Command::new(program("helm"))
        .args(["lint", "--strict", chart])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
