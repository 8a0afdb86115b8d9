//! Snapshots of the network state of the nodes, for checks that deleted pods leave no state.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};

use crate::kind::host;
use crate::kind::kubectl::{get, items, kubectl, text};

/// A snapshot of the state of every node that pods and netweft change: lines of text by node and kind of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residue(LinesByKind);

/// Kinds of state, and the script that prints each. Only state that does not change by itself: no counters, no resolved neighbours.
const SCRIPTS: [(&str, &str); 7] = [
    (
        "links",
        "ip -o link show | sed -E 's/^[0-9]+: //; s/@if[0-9]+//; s/ link-netnsid [0-9]+//; s/ link-netns [^ ]+//'",
    ),
    (
        "addresses",
        "ip -o address show | sed -E 's/^[0-9]+: //; s/(valid|preferred)_lft [^ ]+//g'",
    ),
    (
        "routes",
        "ip route show table all; ip -6 route show table all | sed -E 's/ (pref|expires) [^ ]+//g'",
    ),
    (
        "neighbours",
        "ip neighbour show nud permanent; bridge fdb show | grep permanent",
    ),
    ("namespaces", "ls /run/netns 2>/dev/null || true"),
    (
        "files",
        "find /run/netweft /etc/cni/net.d /opt/cni/bin -type f",
    ),
    ("results", "ls /var/lib/cni/results 2>/dev/null || true"),
];

/// Further kinds of state of a node without netweft. The nft tables of kube-proxy are excluded, because kube-proxy changes them.
const BARE_NODE_SCRIPTS: [(&str, &str); 4] = [
    ("rules", "ip rule; ip -6 rule"),
    (
        "nft",
        "nft list tables | grep -v kube-proxy | while read -r table; do nft -s list $table; done",
    ),
    (
        "files",
        "find /run/netweft* /etc/cni /opt/cni 2>/dev/null || true",
    ),
    (
        "parameters",
        "cd /proc/sys/net; grep -H . */ip_forward */conf/*/forwarding */conf/*/rp_filter */conf/*/accept_ra */ping_group_range bridge/* 2>/dev/null || true",
    ),
];

/// The kind of state that is in both lists. [`BARE_NODE_SCRIPTS`] takes precedence.
const OVERRIDDEN: &str = "files";

impl Residue {
    /// A snapshot of all nodes with netweft. The agents list the nft rules.
    ///
    /// # Errors
    /// A script fails on a node, or a node has no agent.
    pub fn with_agents() -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        for node in host::nodes()? {
            run_scripts(&node, &SCRIPTS, &mut found)?;
            let rules = in_agent(&node, &["nft", "--stateless", "list", "ruleset"])?;
            found.insert((node.clone(), "nft"), sorted(&rules));
        }
        Ok(Self(found))
    }

    /// A snapshot of all nodes, without the programs of netweft.
    ///
    /// # Errors
    /// A script fails on a node.
    pub fn bare() -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        for node in host::nodes()? {
            let scripts = SCRIPTS.iter().filter(|(kind, _)| *kind != OVERRIDDEN);
            let scripts: Vec<_> = scripts.chain(&BARE_NODE_SCRIPTS).copied().collect();
            run_scripts(&node, &scripts, &mut found)?;
        }
        Ok(Self(found))
    }

    /// Check that the state is the same as in an earlier snapshot. The order of lines is ignored.
    ///
    /// # Errors
    /// The snapshots differ. The message lists the additional and the missing lines.
    pub fn same_as(&self, before: &Self) -> anyhow::Result<()> {
        let mut differences = Vec::new();
        for (key, now) in &self.0 {
            let earlier = before.0.get(key).map_or(&[][..], Vec::as_slice);
            let (node, kind) = key;
            let added = now.iter().filter(|line| !earlier.contains(line));
            differences.extend(added.map(|line| format!("{node}, {kind}: left over: {line}")));
            let missing = earlier.iter().filter(|line| !now.contains(line));
            differences.extend(missing.map(|line| format!("{node}, {kind}: missing: {line}")));
        }
        ensure!(differences.is_empty(), "{}", differences.join("\n  "));
        Ok(())
    }
}

type LinesByKind = BTreeMap<(String, &'static str), Vec<String>>;

fn run_scripts(
    node: &str,
    scripts: &[(&'static str, &'static str)],
    found: &mut LinesByKind,
) -> anyhow::Result<()> {
    for (kind, script) in scripts {
        let text = host::on(node, &["sh", "-c", script])?;
        found.insert((node.to_owned(), kind), sorted(&text));
    }
    Ok(())
}

/// Run a program of the agent's image in the agent pod of a node, and return its standard output.
///
/// # Errors
/// The node has no agent pod, or the program fails.
pub fn in_agent(node: &str, words: &[&str]) -> anyhow::Result<String> {
    let pods = get(&[
        "pods",
        "-n",
        "netweft-system",
        "--field-selector",
        &format!("spec.nodeName={node}"),
    ])?;
    let agent = items(&pods)
        .filter_map(|pod| text(pod, "/metadata/name").ok())
        .find(|name| name.starts_with("netweft-agent-"))
        .with_context(|| format!("no agent runs on {node}"))?;
    let mut command = vec!["-n", "netweft-system", "exec", agent, "-c", "agent", "--"];
    command.extend(words);
    kubectl(&command)
}

/// Run the leak check of the agents, `netweft-agent check`, on all nodes.
///
/// # Errors
/// A check fails: the node has state that belongs to no pod, or its state is not the desired state.
pub fn check_leaks() -> anyhow::Result<()> {
    for node in host::nodes()? {
        in_agent(&node, &["netweft-agent", "check"])
            .with_context(|| format!("the leak check on {node}"))?;
    }
    Ok(())
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.sort();
    lines
}
