//! What a node's kernel looks like in each mode, as text for people: it stands in `docs/kernel`, and every lab compares.
//!
//! Only what follows from the objects: no indexes, no counters, nothing that depends on the version of a tool.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use netweft_crds::PodInterface;
use serde_json::Value;

use crate::lab::Lab;
use crate::lab::cluster::families::Families;
use crate::lab::node::Node;

impl Lab {
    /// The snapshot's name and text; `None` for labs of which there is none.
    fn snapshot(&self) -> anyhow::Result<Option<(String, String)>> {
        let routed = self.options.pod_interface == PodInterface::Routed;
        if self.options.families != Families::V4 || !(routed || self.options.mode.is_first()) {
            return Ok(None);
        }
        let kind = if routed { "" } else { "-bridge" };
        let name = format!("{}{kind}.txt", self.options.mode);
        let node = self.site.node(1)?;
        Ok(Some((name, text(node)?)))
    }

    /// Compare with the file in `folder`, or write it there.
    ///
    /// # Errors
    /// The snapshots differ; the error has both.
    pub fn check_snapshot(&self, folder: &Path, write: bool) -> anyhow::Result<()> {
        let Some((name, found)) = self.snapshot()? else {
            return Ok(());
        };
        if write {
            // By the script that has called: on another kernel the folder cannot be written.
            for line in found.lines() {
                println!("snapshot|{name}|{line}");
            }
            return Ok(());
        }
        let file = folder.join(&name);
        let expected = fs::read_to_string(&file).unwrap_or_default();
        ensure!(
            found == expected,
            "{} says\n{expected}\nbut the kernel has\n{found}\nIf that is as it should be: make snapshots",
            file.display()
        );
        Ok(())
    }
}

fn text(node: &Node) -> anyhow::Result<String> {
    let lines = |arguments: &str| -> anyhow::Result<Vec<String>> {
        let text = node.space.ip(arguments)?;
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
    let fdb = crate::harness::command::output(node.space.command("bridge").args(["fdb", "show"]))?;
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

/// Our links but the pods', in the words of `ip -details link`.
fn links(node: &Node) -> anyhow::Result<Vec<String>> {
    let links: Value = serde_json::from_str(&node.space.ip("-json -details link show")?)?;
    let links = links.as_array().context("ip prints a list of links")?;
    let ours = links
        .iter()
        .filter(|link| word(link, "/ifname").starts_with("nw-"));
    Ok(ours.map(describe).collect())
}

fn describe(link: &Value) -> String {
    let kind = word(link, "/linkinfo/info_kind");
    let more = match kind.as_str() {
        "vxlan" => format!(
            " id {} local {} dstport {}{}",
            word(link, "/linkinfo/info_data/id"),
            word(link, "/linkinfo/info_data/local"),
            word(link, "/linkinfo/info_data/port"),
            if word(link, "/linkinfo/info_data/learning") == "false" {
                " nolearning"
            } else {
                ""
            }
        ),
        "ipip" => format!(
            " remote {} local {}",
            word(link, "/linkinfo/info_data/remote"),
            word(link, "/linkinfo/info_data/local")
        ),
        _ => String::new(),
    };
    let mac = match word(link, "/link_type").as_str() {
        "ether" => format!(" link/ether {}", word(link, "/address")),
        _ => String::new(),
    };
    format!(
        "{} mtu {}{mac} {kind}{more}",
        word(link, "/ifname"),
        word(link, "/mtu")
    )
}

fn word(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}
