use serde_json::json;

use crate::controller::watches::*;

fn guarded(value: serde_json::Value) -> Guarded<Node> {
    let mut node: Guarded<Node> = serde_json::from_value(value).unwrap();
    strip_node(&mut node);
    node
}

fn stored_node(version: &str, address: &str) -> Guarded<Node> {
    let condition = |type_: &str| {
        let heartbeat = format!("2026-01-01T00:00:0{version}Z");
        json!({ "type": type_, "status": "True", "lastHeartbeatTime": heartbeat })
    };
    let conditions = ["Ready", "NetworkUnavailable", "DiskPressure"].map(condition);
    guarded(json!({
        "metadata": { "name": "n", "resourceVersion": version, "managedFields": [{}], "annotations": { "a": "b" },
            "labels": { "l": "v" } },
        "spec": { "podCIDR": "10.0.0.0/24", "providerID": "p" },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }], "images": [{ "names": ["big"] }],
            "conditions": conditions },
    }))
}

fn affect_plan(events: Vec<Event<Guarded<Node>>>) -> Vec<bool> {
    let (store, mut writer) = reflector::store::<Guarded<Node>>();
    let apply = |event: Event<Guarded<Node>>| {
        let affects_plan = affects_plan(&event, &store, node_differs);
        writer.apply_watcher_event(&event);
        affects_plan
    };
    events.into_iter().map(apply).collect()
}

#[test]
fn watched_node_is_reduced_to_used_fields() {
    let node = stored_node("1", "10.1.0.1").0.unwrap();
    assert_eq!(
        (&node.metadata.annotations, &node.metadata.managed_fields),
        (&None, &None)
    );
    let spec = node.spec.unwrap();
    assert_eq!(
        (spec.pod_cidr.as_deref(), spec.provider_id),
        (Some("10.0.0.0/24"), None)
    );
    assert_eq!(node.metadata.labels.unwrap()["l"], "v");
    let status = node.status.unwrap();
    assert_eq!(
        (status.images, status.addresses.unwrap()[0].address.as_str()),
        (None, "10.1.0.1")
    );
    let conditions = status.conditions.unwrap();
    let kept: Vec<&str> = conditions.iter().map(|it| it.type_.as_str()).collect();
    assert_eq!(kept, ["Ready", "NetworkUnavailable"]);
}

#[test]
fn node_heartbeat_is_ignored_and_new_address_matters() {
    let events = vec![
        Event::Init,
        Event::InitApply(stored_node("1", "10.1.0.1")),
        Event::InitDone,
        Event::Apply(stored_node("2", "10.1.0.1")),
        Event::Apply(stored_node("3", "10.1.0.2")),
        Event::Delete(stored_node("4", "10.1.0.2")),
        Event::Apply(stored_node("5", "10.1.0.2")),
    ];
    assert_eq!(
        affect_plan(events),
        [false, false, true, false, true, true, true]
    );
}

#[test]
fn node_becoming_unreadable_matters() {
    let broken = guarded(json!({ "metadata": { "name": "n" }, "status": { "addresses": 5 } }));
    assert!(broken.0.is_err());
    assert_eq!(
        affect_plan(vec![
            Event::Apply(stored_node("1", "10.1.0.1")),
            Event::Apply(broken)
        ]),
        [true, true]
    );
}
