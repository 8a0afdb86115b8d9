//! Cleanup of the API server's objects before an uninstallation.

use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use netweft_crds::names::{PASSWORDS_SECRET, POOL_FINALIZER};
use netweft_crds::{IPPool, NodeSubnet};
use serde_json::json;

use crate::control_plane::{CHART, ControlPlane, NAMESPACE, Process};
use crate::objects::{all, create_node, delete, eventually, merge, token};
use crate::operator::{Operator, WAIT_TIMEOUT, wait_until_assigned};

/// Starts the cleanup with the rights of the chart's Job.
async fn clean(plane: &ControlPlane) -> Process {
    let token = token(&plane.admin(), "netweft-cleanup", None).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_netweft-operator"));
    command.env("KUBECONFIG", plane.kubeconfig(plane.url(), &token));
    command.args(["--namespace", NAMESPACE, "--identity", "cleanup"]);
    command.args(["--lease-duration", "2s", "clean"]);
    Process::start(&mut command, &plane.dir.path().join("clean.log"))
}

#[tokio::test]
async fn cleanup_removes_finalizers_so_crds_can_be_deleted() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, "worker-1", "10.1.0.1").await;
    let operator = Operator::start(&plane, "one", &["--lease-duration", "2s"]).await;
    wait_until_assigned(&admin, 1).await;
    let pools: Api<IPPool> = Api::all(admin.clone());
    let both = json!({ "metadata": { "finalizers": [POOL_FINALIZER, "example.org/other"] } });
    merge(&pools, "default-v4", both).await;
    let leases: Api<Lease> = Api::namespaced(admin.clone(), NAMESPACE);
    let passwords =
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": PASSWORDS_SECRET } });
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), NAMESPACE);
    crate::objects::create(&secrets, passwords).await;
    // No kubelet runs the Job, so the test starts the program.
    plane.helm(&[
        "upgrade",
        "netweft",
        CHART,
        "--set",
        "cleanup.enabled=true",
        "--no-hooks",
    ]);
    let mut cleaning = clean(&plane).await;
    // The running operator cannot interfere: the upgrade has removed its rights.
    assert!(cleaning.wait(Duration::from_secs(60)).success());
    let pool = pools.get("default-v4").await.unwrap();
    assert_eq!(pool.finalizers(), ["example.org/other"]);
    assert!(leases.get_opt("netweft-operator").await.unwrap().is_none());
    assert!(secrets.get_opt(PASSWORDS_SECRET).await.unwrap().is_none());
    assert_eq!(
        all::<NodeSubnet>(&admin).await.len(),
        1,
        "NodeSubnets stay for the next installation"
    );
    operator.stop();

    let none = json!({ "metadata": { "finalizers": null } });
    merge(&pools, "default-v4", none).await;
    let crds = crate::objects::crd_api(&admin);
    for crd in netweft_crds::definitions() {
        delete(&crds, &crd.name_any()).await;
    }
    eventually("the CRDs are deleted", WAIT_TIMEOUT, async || {
        let listed = crds.list_metadata(&kube::api::ListParams::default()).await;
        let listed = listed.unwrap().into_iter();
        let remaining = listed.filter(|crd| crd.name_any().ends_with(".netweft.io"));
        (remaining.count() == 0).then_some(())
    })
    .await;
    // A second cleanup finds nothing and succeeds.
    let mut again = clean(&plane).await;
    assert!(again.wait(Duration::from_secs(60)).success());
}

#[tokio::test]
async fn cleanup_waits_for_leader_to_stop() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, "worker-1", "10.1.0.1").await;
    let mut operator = Operator::start(&plane, "one", &["--lease-duration", "2s"]).await;
    wait_until_assigned(&admin, 1).await;
    crate::objects::grant_all_rights(&admin, "netweft-cleanup").await;
    let pools: Api<IPPool> = Api::all(admin.clone());
    let mut cleaning = clean(&plane).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(cleaning.is_running());
    assert_eq!(
        pools.get("default-v4").await.unwrap().finalizers(),
        [POOL_FINALIZER]
    );
    operator.process.kill();
    assert!(cleaning.wait(Duration::from_secs(60)).success());
    assert!(
        pools
            .get("default-v4")
            .await
            .unwrap()
            .finalizers()
            .is_empty()
    );
}
