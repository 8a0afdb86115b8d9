//! Objects that the chart renders, and values that it refuses. No control plane is needed.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::chart_lifecycle::copy;
use crate::control_plane::{CHART, IMAGES, program};

fn helm(chart: &str, arguments: &[&str]) -> Output {
    let mut helm = Command::new(program("helm"));
    helm.args([
        "template",
        "netweft",
        chart,
        "--namespace",
        "netweft-system",
    ])
    .args(IMAGES)
    .args(arguments)
    .output()
    .unwrap()
}

const CLEANUP: [&str; 2] = ["--set", "cleanup.enabled=true"];

/// The objects of the chart, rendered with these arguments of helm.
pub fn rendered(arguments: &[&str]) -> Vec<Value> {
    rendered_of(CHART, arguments)
}

fn rendered_of(chart: &str, arguments: &[&str]) -> Vec<Value> {
    let output = helm(chart, arguments);
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

/// The objects of one kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}

fn daemon_set<'a>(objects: &'a [Value], name: &str) -> &'a Value {
    of_kind(objects, "DaemonSet")
        .into_iter()
        .find(|set| set["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no DaemonSet {name}"))
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
        of_kind(objects, "Job"),
    ]
    .concat()
}

#[test]
fn chart_passes_agent_node_selector_to_operator() {
    let objects = rendered(&["--set", "agent.nodeSelector.disk=ssd"]);
    let operator = of_kind(&objects, "Deployment")[0];
    let arguments = containers(operator)[0]["args"].as_array().unwrap();
    let mut arguments = arguments.iter().filter_map(Value::as_str);
    let nodes = arguments.find_map(|argument| argument.strip_prefix("--agent-nodes="));
    let nodes: Value = serde_json::from_str(nodes.unwrap()).unwrap();
    let agents = &daemon_set(&objects, "netweft-agent")["spec"]["template"]["spec"];
    assert_eq!(nodes["matchLabels"], agents["nodeSelector"]);
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let terms = &agents["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"];
    assert_eq!(terms.as_array().unwrap().len(), 1);
    assert_eq!(nodes["matchExpressions"], terms[0]["matchExpressions"]);
    assert_eq!(nodes["matchLabels"]["disk"], "ssd");
}

#[test]
fn invalid_chart_values_are_refused() {
    for value in [
        "unknown=1",
        "operator.replica=2",
        "agent.port=0",
        "udpRelay.queues=17",
        "bird.image.tag=",
        "bird.maxUnavailable=0",
        "apiServer.host=192.0.2.1",
        "resourceQuota.enabled=maybe",
        "operator.orphanGrace=ten",
        "operator.leaseDuration=1s",
        "image.pullPolicy=Sometimes",
        "logging.format=xml",
        "pools[0].name=p,pools[0].cidr=10.0.0.0/16",
    ] {
        let output = helm(CHART, &["--set", value]);
        assert!(!output.status.success(), "{value}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            stderr.contains("don't meet the specifications of the schema"),
            "{value}: {stderr}"
        );
    }
}

#[test]
fn every_container_has_least_privileges() {
    let objects = [rendered(&[]), rendered(&CLEANUP)].concat();
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
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
            let name = container["name"].as_str().unwrap();
            let of_nodes = workload["kind"] == "DaemonSet";
            let added = match name {
                "agent" | "udp-relay" => json!(["NET_ADMIN"]),
                "clean" if of_nodes => json!(["NET_ADMIN"]),
                "bird" => json!(["NET_ADMIN", "NET_BIND_SERVICE"]),
                _ => Value::Null,
            };
            assert_eq!(context["capabilities"]["add"], added, "{name}");
        }
    }
}

#[test]
fn cleanup_chart_replaces_all_other_objects() {
    let objects = rendered(&CLEANUP);
    let of_cleanup = objects
        .iter()
        .filter(|object| object["kind"] != "ResourceQuota");
    let names = of_cleanup.map(|object| &object["metadata"]["name"]);
    assert!(names.clone().all(|name| name == "netweft-cleanup"));
    assert_eq!(names.count(), 7);
    let args = |objects: &[Value]| {
        let set = daemon_set(objects, "netweft-cleanup");
        containers(set)[0]["args"].clone()
    };
    assert_eq!(args(&objects), json!(["clean", "--stay"]));
    let forced = rendered(&[&CLEANUP[..], &["--set", "cleanup.force=true"]].concat());
    assert_eq!(args(&forced), json!(["clean", "--stay", "--force"]));
    let usual = rendered(&[]);
    assert!(
        usual
            .iter()
            .all(|object| object["metadata"]["name"] != "netweft-cleanup")
    );
}

/// API servers that limit the critical priority classes admit such pods only in a namespace with a quota for the class.
#[test]
fn resource_quota_admits_critical_priority_classes() {
    for more in [&[][..], &CLEANUP[..]] {
        let objects = rendered(more);
        let quotas = of_kind(&objects, "ResourceQuota");
        let [quota] = quotas.as_slice() else {
            panic!("{quotas:?}");
        };
        assert_eq!(quota["metadata"]["namespace"], "netweft-system");
        let scope = &quota["spec"]["scopeSelector"]["matchExpressions"][0];
        assert_eq!(
            (&scope["scopeName"], &scope["operator"]),
            (&"PriorityClass".into(), &"In".into())
        );
        for workload in workloads(&objects) {
            let class = &workload["spec"]["template"]["spec"]["priorityClassName"];
            let classes = scope["values"].as_array().unwrap();
            assert!(class.is_null() || classes.contains(class), "{class}");
        }
        let none = rendered(&[more, &["--set", "resourceQuota.enabled=false"]].concat());
        assert!(of_kind(&none, "ResourceQuota").is_empty());
    }
}

#[test]
fn only_installer_and_agent_mount_cni_bin() {
    let objects = rendered(&[]);
    let mut writers = Vec::new();
    for container in workloads(&objects).into_iter().flat_map(containers) {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        if mounts.into_iter().any(|mount| mount["name"] == "cni-bin") {
            writers.push(container["name"].as_str().unwrap());
        }
    }
    writers.sort_unstable();
    assert_eq!(writers, ["agent", "install"]);
}

/// During an update a node runs two relays. A port in the pod spec would prevent that.
#[test]
fn relay_update_surges_without_host_port() {
    let objects = rendered(&[]);
    let relay = daemon_set(&objects, "netweft-udp-relay");
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
}

/// Two BIRDs cannot share a port, so the old one must end first. It ends by graceful restart, without a message to its
/// peers.
#[test]
fn bird_update_replaces_pod_after_graceful_stop() {
    let objects = rendered(&[]);
    let bird = daemon_set(&objects, "netweft-bird");
    let update = &bird["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!(
        (&update["maxSurge"], &update["maxUnavailable"]),
        (&0.into(), &1.into())
    );
    let pre_stop = &containers(bird)[0]["lifecycle"]["preStop"]["exec"]["command"];
    assert!(
        pre_stop.to_string().ends_with(r#""graceful","restart"]"#),
        "{pre_stop}"
    );
}

/// The operator gets flags for BIRD and the relay.
#[test]
fn bird_and_relay_can_be_disabled() {
    for (value, set, flag) in [
        ("udpRelay.enabled", "netweft-udp-relay", "--udp-relay"),
        ("bird.enabled", "netweft-bird", "--bird"),
    ] {
        for enabled in [true, false] {
            let objects = rendered(&["--set", &format!("{value}={enabled}")]);
            let sets = of_kind(&objects, "DaemonSet");
            let found = sets.iter().any(|found| found["metadata"]["name"] == set);
            assert_eq!(found, enabled, "{set}");
            let operator = of_kind(&objects, "Deployment")[0];
            let arguments = containers(operator)[0]["args"].to_string();
            assert!(arguments.contains(&format!("\"{flag}={enabled}\"")));
        }
    }
}

/// The operator reads only the Secrets of users that the values name, and none without BIRD.
#[test]
fn operator_reads_only_password_secrets_of_values() {
    for (values, expected) in [
        ("bird.enabled=true", None),
        (
            "bird.passwordSecrets={one,two}",
            Some(json!(["one", "two"])),
        ),
        ("bird.enabled=false,bird.passwordSecrets={one}", None),
    ] {
        let objects = rendered(&["--set", values]);
        let roles = [of_kind(&objects, "Role"), of_kind(&objects, "ClusterRole")].concat();
        let rules = roles
            .iter()
            .flat_map(|role| role["rules"].as_array().unwrap());
        let of_secrets = rules.filter(|rule| rule["resources"].to_string().contains("secrets"));
        let mut names: Vec<_> = of_secrets
            .map(|rule| rule["resourceNames"].clone())
            .collect();
        names.retain(|names| *names != json!(["netweft-bgp-passwords"]));
        assert_eq!(names, Vec::from_iter(expected), "{values}");
    }
}

/// A changed pod template replaces the pods, and BIRD's pods with all sessions of the node.
#[test]
fn new_chart_version_keeps_bird_pod_template() {
    let directory = tempfile::tempdir().unwrap();
    let newer = directory.path().join("newer");
    copy(Path::new(CHART), &newer);
    let chart_yaml = newer.join("Chart.yaml");
    let text = std::fs::read_to_string(&chart_yaml).unwrap();
    let new_text = text
        .replace("\nversion: ", "\nversion: 9")
        .replace("appVersion: ", "appVersion: 9");
    assert_eq!(new_text.len(), text.len() + 2);
    std::fs::write(&chart_yaml, new_text).unwrap();
    let newer = newer.to_str().unwrap();
    let versions = [
        rendered(&[]),
        rendered_of(newer, &[]),
        rendered(&["--set", "image.tag=newer"]),
    ];
    let [old, new, tagged] = versions.each_ref().map(|objects| {
        let template = |name| daemon_set(objects, name)["spec"]["template"].clone();
        (template("netweft-bird"), template("netweft-agent"))
    });
    for (bird, agent) in [new, tagged] {
        assert_eq!(bird, old.0);
        assert_ne!(agent, old.1, "the versions have the same pod template");
    }
    let other_bird = rendered(&["--set", "bird.image.tag=2.99.0"]);
    let template = &daemon_set(&other_bird, "netweft-bird")["spec"]["template"];
    let image = &template["spec"]["containers"][0]["image"];
    assert_eq!(image, "netweft/bird:2.99.0");
}

#[test]
fn images_use_configured_registry() {
    let objects = rendered(&[
        "--set",
        "image.registry=registry.example.org:5000,image.tag=t1,bird.image.tag=b1",
    ]);
    let mut images: Vec<_> = workloads(&objects)
        .into_iter()
        .flat_map(containers)
        .map(|c| c["image"].clone())
        .collect();
    images.sort_by_key(Value::to_string);
    images.dedup();
    assert_eq!(
        images,
        [
            "registry.example.org:5000/netweft/agent:t1",
            "registry.example.org:5000/netweft/bird:b1",
            "registry.example.org:5000/netweft/operator:t1",
            "registry.example.org:5000/netweft/udp-relay:t1"
        ]
    );
}

/// An attacker could register an unregistered image name in the default registry.
#[test]
fn empty_image_repository_is_refused() {
    for arguments in [&[][..], &CLEANUP[..]] {
        let arguments = [arguments, &["--set", "image.repository="]].concat();
        let output = helm(CHART, &arguments);
        assert!(!output.status.success(), "{arguments:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            stderr.contains("image.repository is empty, and no images of netweft are published"),
            "{stderr}"
        );
    }
    let values = std::fs::read_to_string(Path::new(CHART).join("values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    assert_eq!(values["image"]["repository"], "");
}

#[test]
fn api_server_host_is_passed_to_all_clients() {
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
fn default_objects_are_kept_and_can_be_disabled() {
    let objects = rendered(&[]);
    for kind in ["NetworkMode", "IPPool"] {
        let found = of_kind(&objects, kind);
        assert_eq!(found.len(), 1);
        let annotations = &found[0]["metadata"]["annotations"];
        assert_eq!(annotations["helm.sh/resource-policy"], "keep");
        // Argo CD deletes objects that Helm keeps, unless an annotation forbids it.
        let options = &annotations["argocd.argoproj.io/sync-options"];
        assert_eq!(options, "Prune=false,Delete=false");
    }
    let objects = rendered(&["--set-json", "pools=[]", "--set-json", "networkModes=[]"]);
    assert!(of_kind(&objects, "NetworkMode").is_empty() && of_kind(&objects, "IPPool").is_empty());
}

#[test]
fn chart_passes_helm_lint() {
    let output = Command::new(program("helm"))
        .args(["lint", "--strict", CHART])
        .args(IMAGES)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
