//! The CNI protocol: versions, environment, configuration, error codes.

use std::collections::BTreeSet;

use netweft_cni::node::PoolConfig;
use serde_json::{Value, json};

use super::DUAL;
use super::netns_node::{Namespace, Node, environment, pool, skipped};

#[test]
fn netns_result_has_requested_cni_version() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Namespace::new();
        let mut conf = node.conf();
        conf["cniVersion"] = json!(version);
        let answer = node.call("ADD", version, &pod.path(), &conf);
        let ips = answer.ips();
        let (host, inside) = (&answer.json["interfaces"][0], &answer.json["interfaces"][1]);
        let old = version.starts_with('0');
        let family = |text: &str| {
            if old {
                json!({ "version": text })
            } else {
                json!({})
            }
        };
        let mtu = if version == "1.1.0" {
            json!({ "mtu": 1350 })
        } else {
            json!({})
        };
        let expected = json!({
            "cniVersion": version,
            "interfaces": [
                merged(&mtu, json!({ "name": host["name"], "mac": host["mac"] })),
                merged(&mtu, json!({ "name": "eth0", "mac": inside["mac"], "sandbox": pod.path() })),
            ],
            "ips": [
                merged(&family("4"), json!({ "address": format!("{}/32", ips[0]), "gateway": "169.254.1.1", "interface": 1 })),
                merged(&family("6"), json!({ "address": format!("{}/128", ips[1]), "gateway": "fe80::1", "interface": 1 })),
            ],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }, { "dst": "::/0", "gw": "fe80::1" }],
            "dns": {},
        });
        assert_eq!(answer.json, expected);
        assert!(
            pod.ip("link show dev eth0")
                .contains(inside["mac"].as_str().unwrap())
        );
        conf["prevResult"] = answer.json.clone();
        if version != "0.3.1" {
            assert!(node.call("CHECK", version, &pod.path(), &conf).success);
        }
        assert!(node.call("DEL", version, &pod.path(), &conf).success);
        assert!(!pod.ip("link show").contains("eth0"));
    }
}

fn merged(extra: &Value, mut value: Value) -> Value {
    value
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    value
}

#[test]
fn version_lists_supported_versions() {
    let node = if skipped() {
        return;
    } else {
        Node::without_config()
    };
    let expected = |version: &str| json!({ "cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] });
    assert_eq!(
        node.raw("VERSION", &[], r#"{"cniVersion":"1.0.0"}"#).json,
        expected("1.0.0")
    );
    for input in ["", "{}", r#"{"cniVersion":"9"}"#] {
        assert_eq!(
            node.raw("VERSION", &[], input).json,
            expected("1.1.0"),
            "{input}"
        );
    }
}

#[test]
fn netns_invalid_request_is_refused_with_reason() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let conf = node.conf().to_string();
    let add = |environment: &[(&str, &str)]| node.raw("ADD", environment, &conf);
    assert!(
        add(&environment("", &pod.path()))
            .message()
            .starts_with("CNI_CONTAINERID: ")
    );
    assert!(
        add(&environment("one", ""))
            .message()
            .starts_with("CNI_NETNS: ")
    );
    let without = environment("one", "").into_iter();
    let without: Vec<_> = without.filter(|(name, _)| *name != "CNI_NETNS").collect();
    assert!(add(&without).message().starts_with("CNI_NETNS: "));
    assert!(
        add(&environment("one", "/nowhere"))
            .message()
            .starts_with("CNI_NETNS: open /nowhere")
    );
    let mut old = node.conf();
    old["cniVersion"] = json!("0.4.0");
    let refused = node.call("ADD", "one", "/nowhere", &old);
    assert_eq!(refused.json["cniVersion"], old["cniVersion"]);
    let own = add(&environment("one", &node.namespace.path()));
    assert!(
        own.code() == 4 && own.message().contains("node's own network namespace"),
        "{own:?}"
    );
    assert_eq!(
        node.raw("ADD", &environment("one", &pod.path()), "{")
            .code(),
        6
    );
    assert_eq!(node.raw("FROB", &[], &conf).code(), 4);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_invalid_network_config_is_refused() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let pod = Namespace::new();
    let code = |command: &str, field: &str, value: Value| {
        let mut conf = node.conf();
        conf[field] = value;
        node.call(command, "one", &pod.path(), &conf).code()
    };
    assert_eq!(code("ADD", "cniVersion", json!("2.0.0")), 1);
    assert_eq!(code("DEL", "cniVersion", json!("")), 1);
    assert_eq!(code("CHECK", "cniVersion", json!("0.3.1")), 1);
    assert_eq!(code("GC", "cniVersion", json!("1.0.0")), 1);
    assert_eq!(code("STATUS", "cniVersion", json!("1.0.0")), 1);
    assert_eq!(code("ADD", "prevResult", json!({})), 7);
    assert_eq!(code("ADD", "name", json!("")), 7);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_add_and_status_before_first_sync_ask_for_retry() {
    if skipped() {
        return;
    }
    let node = Node::without_config();
    let pod = Namespace::new();
    let refused = node.add("one", &pod);
    assert_eq!(refused.code(), 11);
    assert!(
        refused
            .message()
            .contains("netweft-agent has not finished its first sync"),
        "{refused:?}"
    );
    let status = || node.raw("STATUS", &[], &node.conf().to_string());
    assert_eq!(status().code(), 50);
    // After the first sync STATUS succeeds, also with a pool for other namespaces.
    node.configure(&[PoolConfig {
        namespaces: Some(BTreeSet::new()),
        ..pool("other", &["10.244.0.0/30"])
    }]);
    assert!(status().success);
    assert_eq!(node.add("one", &pod).code(), 11);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn netns_status_fails_when_netlink_is_unavailable() {
    if skipped() {
        return;
    }
    let node = Node::new(&DUAL);
    let without_sockets = [
        "strace",
        "--quiet=all",
        "--output=/dev/null",
        "--inject=socket:error=EMFILE",
    ];
    let status = |wrapper: &[&str]| node.raw_with(wrapper, "STATUS", &[], &node.conf().to_string());
    let refused = status(&without_sockets);
    assert_eq!(refused.code(), 11);
    let error = refused.json.to_string();
    assert!(error.contains("Too many open files"), "{error}");
    assert!(status(&[]).success);
}
