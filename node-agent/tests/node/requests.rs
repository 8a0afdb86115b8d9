//! A pod that asks for a pool of which the node has no block yet: its ADD fails, the agent tells, and the next one succeeds.

use std::fs;

use super::lab::{Namespace, Node, Pod, ROUTED, until};

const POOL: &str = "kind: IPPool\nmetadata: {name: web}\nspec: {cidr: \"10.246.0.0/16\"}";
const SUBNET: &str = "kind: NodeSubnet\nmetadata: {name: web-one}\nspec: {cidr: \"10.246.0.0/26\", pool: web, node: one, nodeAddresses: {ipv4: 192.0.2.1}, state: Active}";

/// The node's own part, with the pools `routed` and `web` and these blocks.
fn network(generation: i64, blocks: &str) -> String {
    format!(
        "kind: NodeNetwork\nmetadata: {{name: one, generation: {generation}}}\nspec: {{addresses: {{ipv4: 192.0.2.1}}, subnets: [{blocks}], pools: [routed, web], modes: [{{name: default, pools: [routed, web], transport: {{vxlan: {{}}}}}}]}}"
    )
}

fn wait_for_generation(node: &Node, generation: i64) {
    until("the agent to carry it out", || {
        let status = node.status()?;
        (status.observed_generation == Some(generation))
            .then_some(())
            .ok_or_else(|| format!("{status:?}"))
    });
}

fn add(node: &Node, asked: &str) -> Result<Pod, String> {
    let space = Namespace::new();
    let added = node.add_annotated(("netweft.io/pools", asked), "one", &space.path());
    Pod::of("one", space, added)
}

fn requests(node: &Node) -> Result<Vec<Vec<String>>, String> {
    let requests = node.status()?.block_requests.into_iter();
    Ok(requests.map(|request| request.pools).collect())
}

#[test]
fn netns_pod_requesting_pool_waits_for_its_first_block() {
    let node = Node::ready(ROUTED);
    node.declare("pool-web.yaml", POOL);
    node.declare("network.yaml", &network(2, "\"10.244.0.0/22\""));
    wait_for_generation(&node, 2);
    for _ in 0..2 {
        let refused = add(&node, "web").err().unwrap();
        assert!(
            refused.contains("\"code\":11")
                && refused.contains("no free address in IPPool web (no block on this node): a later attempt succeeds when the operator has assigned a block to this node"),
            "{refused}"
        );
        until("the agent to tell", || {
            let told = requests(&node)?;
            (told == [["web"]]).then_some(()).ok_or(format!("{told:?}"))
        });
    }
    node.declare("subnet-web-one.yaml", SUBNET);
    node.declare(
        "network.yaml",
        &network(3, "\"10.244.0.0/22\", \"10.246.0.0/26\""),
    );
    wait_for_generation(&node, 3);
    assert_eq!(requests(&node), Ok(vec![]), "it is met");
    assert_eq!(fs::read_dir(node.path("run/requests")).unwrap().count(), 0);
    let pod = add(&node, "web").unwrap_or_else(|said| panic!("{said}"));
    assert_eq!(pod.addresses.len(), 1);
    let address = pod.addresses[0].to_string();
    assert!(address.starts_with("10.246.0."), "{address}");
    assert!(pod.answers(&node.namespace) && pod.reaches(&node));
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
    node.nudge();
    let said = node.wait_until_it_says("ProgrammingFailed");
    let words = "list the requests of pods for blocks in ";
    assert!(
        said.starts_with(words) && said.ends_with("Not a directory (os error 20)"),
        "{said}"
    );
    for _ in 0..3 {
        node.nudge();
    }
    fs::remove_file(&dir).unwrap();
    node.nudge();
    node.wait_until_ready();
    let log = node.log();
    let lines = log.lines().filter(|line| line.contains(words));
    assert_eq!(lines.count(), 2, "begins and ends: {log}");
}
