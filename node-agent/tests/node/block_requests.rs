//! A pod that requests a pool without a block on the node: its ADD fails, the status has the request, and a later ADD succeeds.

use std::fs;

use super::lab::{Namespace, Node, Pod, ROUTED, wait_for};

const POOL: &str = "kind: IPPool\nmetadata: {name: web}\nspec: {cidr: \"10.246.0.0/16\"}";
const SUBNET: &str = "kind: NodeSubnet\nmetadata: {name: web-one}\nspec: {cidr: \"10.246.0.0/26\", pool: web, node: one, nodeAddresses: {ipv4: 192.0.2.1}, state: Active}";

/// The NodeNetwork of the node, with the pools `routed` and `web` and these blocks.
fn network(generation: i64, blocks: &str) -> String {
    format!(
        "kind: NodeNetwork\nmetadata: {{name: one, generation: {generation}}}\nspec: {{addresses: {{ipv4: 192.0.2.1}}, subnets: [{blocks}], pools: [routed, web], modes: [{{name: default, pools: [routed, web], transport: {{vxlan: {{}}}}}}]}}"
    )
}

fn wait_for_generation(node: &Node, generation: i64) {
    wait_for("the generation to be acknowledged", || {
        let status = node.status()?;
        (status.observed_generation == Some(generation))
            .then_some(())
            .ok_or_else(|| format!("{status:?}"))
    });
}

fn add(node: &Node, pool: &str) -> Result<Pod, String> {
    let space = Namespace::new();
    let add = node.add_annotated(("netweft.io/pools", pool), "one", &space.path());
    Pod::of("one", space, add)
}

fn requests(node: &Node) -> Result<Vec<Vec<String>>, String> {
    let requests = node.status()?.block_requests.into_iter();
    Ok(requests.map(|request| request.pools).collect())
}

#[test]
fn netns_pod_requesting_pool_waits_for_its_first_block() {
    let node = Node::ready(ROUTED);
    node.write_object("pool-web.yaml", POOL);
    node.write_object("network.yaml", &network(2, "\"10.244.0.0/22\""));
    wait_for_generation(&node, 2);
    for _ in 0..2 {
        let refused = add(&node, "web").err().unwrap();
        assert!(
            refused.contains("\"code\":11")
                && refused.contains("no free address in IPPool web (no block on this node): a later attempt succeeds when the operator has assigned a block to this node"),
            "{refused}"
        );
        wait_for("the request in the status", || {
            let requests = requests(&node)?;
            (requests == [["web"]])
                .then_some(())
                .ok_or(format!("{requests:?}"))
        });
    }
    node.write_object("subnet-web-one.yaml", SUBNET);
    node.write_object(
        "network.yaml",
        &network(3, "\"10.244.0.0/22\", \"10.246.0.0/26\""),
    );
    wait_for_generation(&node, 3);
    assert_eq!(requests(&node), Ok(vec![]), "the request is met");
    assert_eq!(fs::read_dir(node.path("run/requests")).unwrap().count(), 0);
    let pod = add(&node, "web").unwrap_or_else(|message| panic!("{message}"));
    assert_eq!(pod.addresses.len(), 1);
    let address = pod.addresses[0].to_string();
    assert!(address.starts_with("10.246.0."), "{address}");
    assert!(pod.is_reachable_from(&node.namespace) && pod.reaches(&node));
}

#[test]
fn netns_pod_requesting_unavailable_pool_is_refused() {
    let node = Node::ready(ROUTED);
    let refused = add(&node, "web").err().unwrap();
    assert!(
        refused.contains("annotation netweft.io/pools requests IPPool web, which gives no addresses to this pod: request routed"),
        "{refused}"
    );
    assert_eq!(fs::read_dir(node.path("run/requests")).unwrap().count(), 0);
}

#[test]
fn netns_unlistable_block_requests_fail_and_are_logged_once() {
    let node = Node::ready(ROUTED);
    let dir = node.path("run/requests");
    fs::remove_dir_all(&dir).ok();
    fs::write(&dir, "").unwrap();
    node.trigger_reconcile();
    let message = node.wait_for_reason("ProgrammingFailed");
    let expected = "list the requests of pods for blocks in ";
    assert!(
        message.starts_with(expected) && message.ends_with("Not a directory (os error 20)"),
        "{message}"
    );
    for _ in 0..3 {
        node.trigger_reconcile();
    }
    fs::remove_file(&dir).unwrap();
    node.trigger_reconcile();
    node.wait_until_ready();
    let log = node.log();
    let lines = log.lines().filter(|line| line.contains(expected));
    assert_eq!(
        lines.count(),
        2,
        "one line for the start and one for the end: {log}"
    );
}
