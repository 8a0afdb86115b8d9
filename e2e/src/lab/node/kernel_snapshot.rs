//! Snapshots of a node's kernel state in each mode, as documentation in `docs/kernel`. Every lab compares its state with them.
//!
//! A snapshot contains only what follows from the objects: no interface indexes, no counters, nothing that depends on the version of a
//! tool.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use netweft_crds::PodInterface;
use serde_json::Value;

use crate::lab::Lab;
use crate::lab::cluster::families::Families;
use crate::lab::node::Node;

impl Lab {
    /// Name and text of the snapshot; `None` for labs without a snapshot.
    fn snapshot(&self) -> anyhow::Result<Option<(String, String)>> {
        let routed = self.options.pod_interface == PodInterface::Routed;
        if self.options.families != Families::V4
            || !(routed || self.options.mode.has_bridge_snapshot())
        {
            return Ok(None);
        }
        let kind = if routed { "" } else { "-bridge" };
        let name = format!("{}{kind}.txt", self.options.mode);
        let node = self.cluster.node(1)?;
        Ok(Some((name, text(node)?)))
    }

    /// Compares the kernel state with the snapshot in `folder`, or only prints the state for hack/snapshots.sh.
    ///
    /// # Errors
    /// State and snapshot differ; the message contains both. Or a command fails.
    pub fn check_snapshot(&self, folder: &Path, print_only: bool) -> anyhow::Result<()> {
        let Some((name, found)) = self.snapshot()? else {
            return Ok(());
        };
        if print_only {
            // The calling script writes the file, because the folder is read-only in a lab under user-mode Linux.
            for line in found.lines() {
                println!("snapshot|{name}|{line}");
            }
            return Ok(());
        }
        let file = folder.join(&name);
        let expected = fs::read_to_string(&file).unwrap_or_default();
        ensure!(
            found == expected,
            "{} contains\n{expected}\nbut the kernel has\n{found}\nIf the new state is correct, run: make snapshots",
            file.display()
        );
        Ok(())
    }
}

fn text(node: &Node) -> anyhow::Result<String> {
    let lines = |arguments: &str| -> anyhow::Result<Vec<String>> {
        let text = node.namespace.ip(arguments)?;
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        lines.sort();
        Ok(lines)
    };
    let mut parts = vec![
        ("ip route", lines("route show table main")?),
        ("ip -d link", links(node)?),
    ];
    parts.push((
        "ip neighbour show nud permanent",
        lines("neighbour show nud permanent")?,
    ));
    let fdb =
        crate::harness::command::output(node.namespace.command("bridge").args(["fdb", "show"]))?;
    let remote = fdb.lines().filter(|line| line.contains(" dst "));
    let mut remote: Vec<String> = remote.map(|line| line.trim_end().to_owned()).collect();
    remote.sort();
    parts.push(("bridge fdb", remote));
    let part = |(what, lines): (&str, Vec<String>)| format!("# {what}\n{}\n\n", lines.join("\n"));
    let text: String = parts
        .into_iter()
        .filter(|(_, lines)| !lines.is_empty())
        .map(part)
        .collect();
    Ok(format!("{}\n", text.trim_end()))
}

/// The agent's links without the links of pods, in the format of `ip -details link`.
fn links(node: &Node) -> anyhow::Result<Vec<String>> {
    let links: Value = serde_json::from_str(&node.namespace.ip("-json -details link show")?)?;
    let links = links.as_array().context("ip prints no list of links")?;
    let agent_links = links
        .iter()
        .filter(|link| text_at(link, "/ifname").starts_with("nw-"));
    Ok(agent_links.map(describe).collect())
}

fn describe(link: &Value) -> String {
    let kind = text_at(link, "/linkinfo/info_kind");
    let more = match kind.as_str() {
        "vxlan" => format!(
            " id {} local {} dstport {}{}",
            text_at(link, "/linkinfo/info_data/id"),
            text_at(link, "/linkinfo/info_data/local"),
            text_at(link, "/linkinfo/info_data/port"),
            if text_at(link, "/linkinfo/info_data/learning") == "false" {
                " nolearning"
            } else {
                ""
            }
        ),
        "ipip" => format!(
            " remote {} local {}",
            text_at(link, "/linkinfo/info_data/remote"),
            text_at(link, "/linkinfo/info_data/local")
        ),
        _ => String::new(),
    };
    let mac = match text_at(link, "/link_type").as_str() {
        "ether" => format!(" link/ether {}", text_at(link, "/address")),
        _ => String::new(),
    };
    format!(
        "{} mtu {}{mac} {kind}{more}",
        text_at(link, "/ifname"),
        text_at(link, "/mtu")
    )
}

fn text_at(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}
