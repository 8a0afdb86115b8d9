//! What there is of a pod network on a node: to see that nothing is left of pods that have gone.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};

use crate::kind::host;
use crate::kind::kubectl::{get, items, kubectl, text};

/// Everything on every node that pods leave traces in, as text by node and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residue(Found);

/// What is looked at, and how. Only what does not change by itself: no counters, no resolved neighbours.
const LOOKS: [(&str, &str); 7] = [
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

/// What is looked at besides on a node that netweft may not be on. kube-proxy's tables are its own business.
const BARE_LOOKS: [(&str, &str); 4] = [
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

/// The kinds of things of which both lists have a look; the latter's counts.
const REPLACED: &str = "files";

impl Residue {
    /// Look at all nodes.
    ///
    /// # Errors
    /// A node cannot be looked at.
    pub fn look() -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        for node in host::nodes()? {
            look_at(&node, &LOOKS, &mut found)?;
            let rules = in_agent(&node, &["nft", "--stateless", "list", "ruleset"])?;
            found.insert((node.clone(), "nft"), sorted(&rules));
        }
        Ok(Self(found))
    }

    /// Look at all nodes, with nothing but what is on them without netweft.
    ///
    /// # Errors
    /// A node cannot be looked at.
    pub fn bare() -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        for node in host::nodes()? {
            let looks = LOOKS.iter().filter(|(kind, _)| *kind != REPLACED);
            let looks: Vec<_> = looks.chain(&BARE_LOOKS).copied().collect();
            look_at(&node, &looks, &mut found)?;
        }
        Ok(Self(found))
    }

    /// # Errors
    /// What is there now and was not before, or the other way round.
    pub fn same_as(&self, before: &Self) -> anyhow::Result<()> {
        let mut differences = Vec::new();
        for (key, now) in &self.0 {
            let was = before.0.get(key).map_or(&[][..], Vec::as_slice);
            let (node, kind) = key;
            let new = now.iter().filter(|line| !was.contains(line));
            differences.extend(new.map(|line| format!("{node}, {kind}: left over: {line}")));
            let gone = was.iter().filter(|line| !now.contains(line));
            differences.extend(gone.map(|line| format!("{node}, {kind}: missing: {line}")));
        }
        ensure!(differences.is_empty(), "{}", differences.join("\n  "));
        Ok(())
    }
}

type Found = BTreeMap<(String, &'static str), Vec<String>>;

fn look_at(
    node: &str,
    looks: &[(&'static str, &'static str)],
    found: &mut Found,
) -> anyhow::Result<()> {
    for (kind, script) in looks {
        let text = host::on(node, &["sh", "-c", script])?;
        found.insert((node.to_owned(), kind), sorted(&text));
    }
    Ok(())
}

/// Run a program of the agent's image in the agent's pod on a node.
///
/// # Errors
/// There is no such pod, or the program fails.
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

/// Nothing is out of place on any node, in the agents' own words.
///
/// # Errors
/// An agent has found something.
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
