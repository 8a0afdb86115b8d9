//! BGPPeers from the view of users: conditions, passwords and Events.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use netweft_crds::condition::READY;
use netweft_crds::names::PASSWORDS_SECRET;
use netweft_crds::{BGPPeer, NetworkMode, NodeNetwork};
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, NAMESPACE};
use crate::objects::{all, create, create_node, delete, eventually, merge};
use crate::operator::{Operator, WAIT_TIMEOUT, wait_until_assigned};

/// How long a Secret without the label is left alone.
const UNREAD: Duration = Duration::from_secs(2);
/// Time limit for a condition after its cause.
const TIMEOUT: Duration = Duration::from_secs(10);
const FIRST: &str = "correct-horse-battery";
const SECOND: &str = "staple-of-another-day";

async fn wait_for_peer_condition(admin: &Client, within: Duration, reason: &str, text: &str) {
    let peers: Api<BGPPeer> = Api::all(admin.clone());
    let what = format!("the peer has {reason}: {text}");
    eventually(&what, within, async || {
        let status = peers.get("tor").await.unwrap().status?;
        let mut conditions = status.conditions.into_iter();
        conditions.find(|c| c.type_ == READY && c.reason == reason && c.message.contains(text))
    })
    .await;
}

/// Reports a session like the agent of a node.
async fn report(admin: &Client, node: &str, state: &str, fault: Option<&str>) {
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    let mut session = json!({ "name": "tor", "peerIP": "10.1.0.254", "state": state, "received": 3, "advertised": 1 });
    if let Some(fault) = fault {
        session["fault"] = fault.into();
        session["message"] = "message of BIRD".into();
    }
    let patch = json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "NodeNetwork", "status": { "sessions": [session] } });
    let params = PatchParams::apply("netweft-agent").force();
    let patch = Patch::Apply(patch);
    let written = networks.patch_status(node, &params, &patch);
    written.await.unwrap();
}

/// The value of a key in the agents' Secret.
async fn stored_password(secrets: &Api<Secret>, key: &str) -> Option<String> {
    let secret = secrets.get_opt(PASSWORDS_SECRET).await.unwrap()?;
    let ByteString(value) = secret.data?.remove(key)?;
    Some(String::from_utf8(value).unwrap())
}

async fn wait_until_stored(secrets: &Api<Secret>, password: Option<&str>) {
    let what = "the agents' Secret is updated";
    eventually(what, WAIT_TIMEOUT, async || {
        (stored_password(secrets, "tor").await.as_deref() == password).then_some(())
    })
    .await;
}

#[tokio::test]
async fn bgp_peer_status_follows_sessions_and_password() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    for number in 1..=2 {
        let (name, address) = (format!("worker-{number}"), format!("10.1.0.{number}"));
        create_node(&admin, &name, &address).await;
    }
    let operator = Operator::start(&plane, "one", &["--password-secrets", "user-passwords"]).await;
    wait_until_assigned(&admin, 2).await;
    let peers: Api<BGPPeer> = Api::all(admin.clone());
    let at = json!({ "secretKeyRef": { "name": "user-passwords", "key": "tor-r1" } });
    let peer = json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "BGPPeer", "metadata": { "name": "tor" },
        "spec": { "peerIP": "10.1.0.254", "asNumber": 65001, "password": at } });
    create(&peers, peer).await;
    wait_for_peer_condition(
        &admin,
        WAIT_TIMEOUT,
        "NotFound",
        "no NetworkMode has mode underlay",
    )
    .await;
    change_mode_to_underlay(&admin).await;

    let secrets: Api<Secret> = Api::namespaced(admin.clone(), NAMESPACE);
    let missing = "the key tor-r1 of Secret user-passwords";
    wait_for_peer_condition(&admin, TIMEOUT, "NotFound", missing).await;
    let secret = |key: &str, password: &str| json!({ "metadata": { "name": "user-passwords" }, "stringData": { key: password } });
    create(&secrets, secret("tor-r1", FIRST)).await;
    // The Secret has no label, so it is not for netweft. The password of another key follows, so the operator has read it.
    merge(&secrets, "user-passwords", secret("other", "x")).await;
    tokio::time::sleep(UNREAD).await;
    wait_for_peer_condition(&admin, TIMEOUT, "NotFound", missing).await;
    assert_eq!(stored_password(&secrets, "tor").await, None);
    let label = json!({ "metadata": { "labels": { "netweft.io/bgp-password": "true" } } });
    merge(&secrets, "user-passwords", label).await;
    wait_for_peer_condition(&admin, TIMEOUT, "Establishing", "0 of 2 nodes").await;
    wait_until_stored(&secrets, Some(FIRST)).await;
    merge(&secrets, "user-passwords", secret("tor-r1", SECOND)).await;
    wait_until_stored(&secrets, Some(SECOND)).await;

    check_session_reports(&admin).await;
    // Deleting the Secret does not affect an established session.
    delete(&secrets, "user-passwords").await;
    wait_for_peer_condition(&admin, TIMEOUT, "NotFound", missing).await;
    assert_eq!(
        stored_password(&secrets, "tor").await.as_deref(),
        Some(SECOND)
    );
    delete(&peers, "tor").await;
    wait_until_stored(&secrets, None).await;

    operator.stop();
    assert_password_is_not_disclosed(&plane).await;
    assert_only_needed_secrets_were_read(&plane);
}

async fn change_mode_to_underlay(admin: &Client) {
    let modes: Api<NetworkMode> = Api::all(admin.clone());
    let underlay = json!({ "spec": { "mode": "underlay", "overlay": null } });
    merge(&modes, "default", underlay).await;
    eventually("every node has its sessions", WAIT_TIMEOUT, async || {
        let networks = all::<NodeNetwork>(admin).await;
        let sessions = networks
            .iter()
            .filter_map(|network| network.spec.bgp.as_ref());
        let both = |bgp: &netweft_crds::NodeBgp| {
            bgp.sessions
                .iter()
                .map(|s| s.name.clone())
                .collect::<Vec<_>>()
        };
        let names: Vec<_> = sessions.map(both).collect();
        (names == [["mesh-worker-2", "tor"], ["mesh-worker-1", "tor"]]).then_some(())
    })
    .await;
}

async fn check_session_reports(admin: &Client) {
    report(admin, "worker-1", "Established", None).await;
    report(admin, "worker-2", "Established", None).await;
    wait_for_peer_condition(admin, TIMEOUT, "Established", "2 of 2 nodes").await;
    report(admin, "worker-2", "Idle", Some("ASNumberMismatch")).await;
    let text = "session established on 1 of 2 nodes; worker-2: message of BIRD";
    wait_for_peer_condition(admin, TIMEOUT, "SessionFailed", text).await;
    let peers: Api<BGPPeer> = Api::all(admin.clone());
    let status = peers.get("tor").await.unwrap().status.unwrap();
    assert_eq!(status.errors[0].node, "worker-2");
    assert_eq!(status.prefixes.unwrap().received, 3);
    let events: Api<Event> = Api::namespaced(admin.clone(), "default");
    eventually("a warning Event is published", WAIT_TIMEOUT, async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        let warns = |event: &Event| {
            event.reason.as_deref() == Some("SessionFailed")
                && event.type_.as_deref() == Some("Warning")
        };
        events.items.into_iter().find(warns)
    })
    .await;
    report(admin, "worker-2", "Established", None).await;
    wait_for_peer_condition(admin, TIMEOUT, "Established", "2 of 2 nodes").await;
}

/// The log has level debug.
async fn assert_password_is_not_disclosed(plane: &ControlPlane) {
    let log = std::fs::read_to_string(plane.dir.path().join("one.log")).unwrap();
    assert!(
        log.contains(PASSWORDS_SECRET),
        "the log lacks the Secret's name:\n{log}"
    );
    let admin = plane.admin();
    let events: Api<Event> = Api::namespaced(admin.clone(), "default");
    let events = events.list(&ListParams::default()).await.unwrap();
    assert!(!events.items.is_empty());
    let networks = all::<NodeNetwork>(&admin).await;
    let published = serde_json::to_string(&(events.items, networks)).unwrap();
    for password in [FIRST, SECOND] {
        let base64 = serde_json::to_string(&ByteString(password.into())).unwrap();
        for form in [password, base64.trim_matches('"')] {
            assert!(!log.contains(form), "the log shows {form}");
            assert!(!published.contains(form), "{published}");
        }
    }
}

fn assert_only_needed_secrets_were_read(plane: &ControlPlane) {
    let log = std::fs::read_to_string(plane.audit_log()).unwrap();
    let events = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let by_operator = events.filter(|event| {
        let user = event["user"]["username"].as_str().unwrap_or_default();
        user.ends_with(":netweft-operator") && event["objectRef"]["resource"] == "secrets"
    });
    let mut names: Vec<String> = by_operator
        .map(|event| {
            format!(
                "{} {}",
                event["objectRef"]["namespace"], event["objectRef"]["name"]
            )
        })
        .collect();
    names.sort();
    names.dedup();
    let of = |name: &str| format!("{NAMESPACE:?} {name:?}");
    assert_eq!(names, [of(PASSWORDS_SECRET), of("user-passwords")]);
}
