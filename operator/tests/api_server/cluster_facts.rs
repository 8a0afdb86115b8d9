//! What the operator reads of the cluster in addition to netweft's objects, and its state before it has read anything.

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use netweft_crds::condition::READY;
use netweft_crds::{BGPPeer, IPPool};
use serde_json::json;

use crate::control_plane::{ControlPlane, free_port};
use crate::objects::{all, create, create_node, delete, delete_crd, eventually, merge};
use crate::operator::{Operator, WAIT_TIMEOUT, owners, wait_until_assigned};

async fn wait_for_pool_condition(admin: &Client, reason: &str, text: &str) {
    let pools: Api<IPPool> = Api::all(admin.clone());
    let what = format!("the pool has {reason}: {text}");
    eventually(&what, WAIT_TIMEOUT, async || {
        let status = pools.get("default-v4").await.unwrap().status?;
        let mut conditions = status.conditions.into_iter();
        conditions.find(|c| c.type_ == READY && c.reason == reason && c.message.contains(text))
    })
    .await;
}

#[tokio::test]
async fn pool_status_follows_kube_proxy_services_and_nodes() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, "worker-1", "10.1.0.1").await;
    let operator = Operator::start(&plane, "one", &[]).await;
    wait_for_pool_condition(&admin, "Allocatable", "").await;

    let proxies: Api<ConfigMap> = Api::namespaced(admin.clone(), "kube-system");
    let config_map = |configuration: &str| json!({ "metadata": { "name": "kube-proxy" }, "data": { "config.conf": configuration } });
    create(&proxies, config_map("clusterCIDR: 10.0.0.0/16\n")).await;
    wait_for_pool_condition(&admin, "KubeProxyMismatch", "clusterCIDR 10.0.0.0/16").await;
    // The cluster must be able to start before a user corrects kube-proxy.
    create_node(&admin, "worker-2", "10.1.0.2").await;
    wait_until_assigned(&admin, 2).await;
    let by_prefix =
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: nw}\n";
    operator.wait_until_idle().await;
    merge(&proxies, "kube-proxy", config_map(by_prefix)).await;
    wait_for_pool_condition(&admin, "Allocatable", "").await;

    let ranges: Api<ServiceCIDR> = Api::all(admin.clone());
    let more = json!({ "metadata": { "name": "more" }, "spec": { "cidrs": ["10.244.128.0/20"] } });
    operator.wait_until_idle().await;
    create(&ranges, more).await;
    wait_for_pool_condition(&admin, "Overlap", "10.244.128.0/20 (ServiceCIDR more)").await;
    // The pool assigns no more blocks. Assigned blocks stay.
    let before = owners(&admin).await;
    create_node(&admin, "worker-3", "10.1.0.3").await;
    operator.wait_until_idle().await;
    assert_eq!(owners(&admin).await, before);
    delete(&ranges, "more").await;
    wait_until_assigned(&admin, 3).await;
    // A Node with an address inside the pool does not affect other nodes.
    create_node(&admin, "worker-4", "10.244.7.7").await;
    wait_for_pool_condition(&admin, "Allocatable", "Node worker-4 (10.244.7.7)").await;
    let nodes: Api<Node> = Api::all(admin.clone());
    delete(&nodes, "worker-4").await;
    wait_for_pool_condition(&admin, "Allocatable", "").await;
}

/// The API server publishes its own Service range as a ServiceCIDR.
#[tokio::test]
async fn pool_in_service_cidr_assigns_no_blocks() {
    let plane = ControlPlane::start().await;
    let pool = "pools=[{\"name\":\"default-v4\",\"spec\":{\"cidr\":\"10.96.0.0/12\"}}]";
    let chart = crate::control_plane::CHART;
    plane.helm(&[
        "install",
        "netweft",
        chart,
        "--create-namespace",
        "--set-json",
        pool,
    ]);
    let admin = plane.admin();
    create_node(&admin, "worker-1", "10.1.0.1").await;
    let _operator = Operator::start(&plane, "one", &[]).await;
    wait_for_pool_condition(&admin, "Overlap", "10.96.0.0/16 (ServiceCIDR kubernetes)").await;
    assert!(owners(&admin).await.is_empty());
}

#[tokio::test]
async fn operator_without_api_server_is_live_but_not_ready() {
    let plane = ControlPlane::with_chart().await;
    let nowhere = format!("https://127.0.0.1:{}", free_port());
    let mut operator = Operator::start_with_url(&plane, &nowhere, "disconnected", &[]).await;
    let live = eventually("the admin server responds", WAIT_TIMEOUT, async || {
        operator.get("/livez").await
    });
    assert!(live.await.starts_with("HTTP/1.0 200"));
    let ready = operator.get("/readyz").await.unwrap();
    assert!(ready.starts_with("HTTP/1.0 503"), "{ready}");
    assert!(
        ready.ends_with("not all objects have been listed yet\n"),
        "{ready}"
    );
    assert!(
        operator
            .has_metric("netweft_operator_leader 0")
            .await
            .is_some()
    );
    assert!(operator.process.is_running());
    operator.stop();
}

#[tokio::test]
async fn operator_creates_and_updates_crds() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    let definitions: Api<CustomResourceDefinition> = Api::all(admin.clone());
    // One CRD is missing, another one has a different version.
    delete_crd(&admin, "bgppeers.netweft.io").await;
    let names = json!({ "spec": { "names": { "shortNames": ["old"] } } });
    merge(&definitions, "ippools.netweft.io", names).await;
    let operator = Operator::start(&plane, "one", &[]).await;
    eventually(
        "the operator has listed its kinds",
        WAIT_TIMEOUT,
        async || operator.is_ready().await,
    )
    .await;
    assert!(all::<BGPPeer>(&admin).await.is_empty());
    let pools = definitions.get("ippools.netweft.io").await.unwrap();
    let names = pools.spec.names.short_names.unwrap();
    assert!(names.contains(&"ipp".to_owned()));
}
