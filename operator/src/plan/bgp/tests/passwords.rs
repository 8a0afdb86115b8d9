//! Passwords: from Secrets of users to the agents' Secret, and to no other place.

use std::collections::BTreeMap;

use netweft_crds::names::PASSWORDS_SECRET;

use crate::plan::bgp::passwords::secret_names;
use crate::plan::model::secret::{Password, Secret};
use crate::testing::{Cluster, at, peer, secret, underlay};

const SPEC: &str = "{peerIP: 10.1.0.254, asNumber: 65001, password: {secretKeyRef: {name: user-passwords, key: tor-r1}}}";
const HIDDEN: &str = "correct horse";

fn with_password() -> Cluster {
    let mut cluster = underlay(1, "nodeToNodeMesh: false");
    cluster.peers.push(at(0, peer("tor", SPEC)));
    cluster
        .secrets
        .insert("user-passwords".to_owned(), Some(secret("tor-r1", HIDDEN)));
    cluster
}

fn stored(cluster: &Cluster) -> BTreeMap<String, Password> {
    let secret = cluster.secrets[PASSWORDS_SECRET].clone();
    secret.unwrap_or_default().keys
}

fn password(text: &str) -> BTreeMap<String, Password> {
    [("tor".to_owned(), Password::new(text.into()))].into()
}

#[test]
fn bgp_password_is_copied_to_agent_secret_by_peer_name() {
    let mut cluster = with_password();
    cluster.reconcile();
    assert_eq!(stored(&cluster), password(HIDDEN));
    let session = &cluster.networks[0].spec.bgp.as_ref().unwrap().sessions[0];
    assert_eq!(session.password_key.as_deref(), Some("tor"));
}

#[test]
fn rotated_bgp_password_updates_agent_secret() {
    let mut cluster = with_password();
    cluster.reconcile();
    cluster.secrets.insert(
        "user-passwords".to_owned(),
        Some(secret("tor-r1", "battery staple")),
    );
    cluster.reconcile();
    assert_eq!(stored(&cluster), password("battery staple"));
}

#[test]
fn unused_bgp_password_keys_are_removed() {
    let mut cluster = with_password();
    cluster.reconcile();
    let kept = cluster
        .secrets
        .get_mut(PASSWORDS_SECRET)
        .unwrap()
        .as_mut()
        .unwrap();
    kept.keys
        .insert("old".to_owned(), Password::new("x".into()));
    cluster.reconcile();
    assert_eq!(stored(&cluster), password(HIDDEN));
    cluster.peers[0].spec.password = None;
    cluster.reconcile();
    assert!(stored(&cluster).is_empty());
}

#[test]
fn no_bgp_passwords_create_no_secret() {
    let mut cluster = underlay(1, "");
    cluster.reconcile();
    assert_eq!(cluster.secrets[PASSWORDS_SECRET], None);
}

#[test]
fn missing_password_secret_is_reported_and_old_one_kept() {
    let unlabelled = Secret {
        labelled: false,
        ..secret("tor-r1", "x")
    };
    let expected = "False NotFound: spec.password names the key tor-r1 of Secret user-passwords, and the release's namespace has no such key in a Secret with the label netweft.io/bgp-password=true; create the Secret with the key, and label it: kubectl label secret user-passwords netweft.io/bgp-password=true";
    // One message for all causes, so that it does not reveal which Secrets and keys exist.
    let missing = [None, Some(secret("other", "x")), Some(unlabelled)];
    for found in missing {
        let mut cluster = with_password();
        cluster.reconcile();
        cluster.agents_report_sessions(1);
        cluster.reconcile();
        cluster.secrets.insert("user-passwords".to_owned(), found);
        cluster.reconcile();
        assert_eq!(cluster.peer_message("tor"), expected);
        assert_eq!(
            stored(&cluster),
            password(HIDDEN),
            "established sessions stay established"
        );
    }
}

#[test]
fn password_secret_outside_chart_values_is_refused() {
    let mut cluster = with_password();
    cluster.unreadable_secrets = true;
    cluster.reconcile();
    let expected = "False NotFound: spec.password names Secret user-passwords, which the operator may not read: add the name to bird.passwordSecrets in the values of the Helm chart, and upgrade the release";
    assert_eq!(cluster.peer_message("tor"), expected);
    assert!(stored(&cluster).is_empty());
}

#[test]
fn invalid_bgp_password_is_refused_and_not_shown() {
    for (text, expected) in [
        ("", "is empty"),
        (
            "secret\n",
            "ends with a newline; remove the newline, for example with printf",
        ),
        (
            &"x".repeat(81),
            "is longer than 80 bytes, the maximum of TCP MD5",
        ),
        (
            "a\"b",
            "has a quotation mark or characters other than printable ASCII",
        ),
        (
            "gr\u{fc}n",
            "has a quotation mark or characters other than printable ASCII",
        ),
    ] {
        let mut cluster = with_password();
        cluster
            .secrets
            .insert("user-passwords".to_owned(), Some(secret("tor-r1", text)));
        cluster.reconcile();
        let message = format!(
            "False Invalid: the password in key tor-r1 of Secret user-passwords {expected}"
        );
        assert_eq!(cluster.peer_message("tor"), message);
        assert!(stored(&cluster).is_empty(), "{text:?}");
    }
    let mut cluster = with_password();
    cluster.secrets.insert(
        "user-passwords".to_owned(),
        Some(secret("tor-r1", &"x".repeat(80))),
    );
    cluster.reconcile();
    assert_eq!(stored(&cluster).len(), 1);
}

#[test]
fn passwords_are_not_written_before_secrets_are_listed() {
    let mut cluster = with_password();
    cluster.reconcile();
    // The watches of a new leader have not listed yet.
    let mut fresh = cluster.clone();
    fresh.secrets.clear();
    assert!(fresh.plan().is_empty(), "{:?}", fresh.plan());
    // The agents' Secret has been listed, the user's Secret not yet.
    let mut half = cluster.clone();
    half.secrets.remove("user-passwords");
    assert_eq!(half.plan().passwords, None);
    assert!(!half.peer_message("tor").contains("NotFound"));
}

#[test]
fn unreadable_or_invalid_peer_keeps_its_password() {
    let mut cluster = with_password();
    cluster.reconcile();
    cluster.peers[0].spec.as_number = None;
    cluster.reconcile();
    assert_eq!(stored(&cluster), password(HIDDEN));
    let unreadable = crate::plan::model::cluster_state::Unreadable {
        kind: crate::plan::model::cluster_state::UserKind::Peer,
        metadata: cluster.peers.remove(0).metadata,
        error: "no".to_owned(),
    };
    let cluster_state = crate::plan::model::cluster_state::ClusterState {
        unreadable: vec![unreadable],
        ..cluster.cluster_state()
    };
    assert_eq!(crate::plan(&cluster_state).passwords, None);
}

#[test]
fn only_secrets_named_by_peers_are_read() {
    let cluster = with_password();
    let names: Vec<_> = secret_names(cluster.peers.iter()).into_iter().collect();
    assert_eq!(names, [PASSWORDS_SECRET, "user-passwords"]);
    assert_eq!(secret_names([].iter()).len(), 1);
}

#[test]
fn bgp_password_appears_in_no_debug_output_or_status() {
    let mut cluster = with_password();
    let plan = cluster.plan();
    let (bytes, number) = (HIDDEN.as_bytes(), "99, 111, 114");
    assert!(
        format!("{bytes:?}").contains(number),
        "the test searches for the Debug format"
    );
    let shown = format!("{plan:?} {:?}", cluster.cluster_state());
    assert!(
        !shown.contains(HIDDEN) && !shown.contains(number) && shown.contains("***"),
        "{shown}"
    );
    cluster.reconcile();
    cluster.agents_report_sessions(1);
    cluster.reconcile();
    let serialized =
        serde_json::json!([cluster.peers, cluster.networks, cluster.modes]).to_string();
    assert!(
        !serialized.contains(HIDDEN) && !serialized.contains(number),
        "{serialized}"
    );
}
