//! `netweft-agent check`: compares this node with its desired state, and changes nothing.
//!
//! It compares records, kernel and `node.json` of pods. With the name of the Node it also compares kernel, nftables, sysctls and files
//! with the desired state (`node.rs`), which it computes as the agent does, in a separate process.
//!
//! It prints one problem per line, and its exit code is the number of problems. An ADD in progress is no problem.

mod node;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use netweft_cni::attachment::{Attachment, Store};
use netweft_cni::node::{NodeConfig, NodeConfigError};
use netweft_cni::pod;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::rtnl::Rtnl;

use crate::commands::args::CheckArgs;
use crate::commands::check::node::NodeCheck;
use crate::pods::{OrphanCandidate, Records, Survey, add_in_progress};
use netweft_common::error_chain;

/// The maximum number of problems in an exit code. Higher exit codes have another meaning.
const MAX_EXIT_CODE: usize = 100;

/// A problem is reported if it exists twice with this delay, because pods start and end during the check.
const CONFIRMATION_DELAY: Duration = Duration::from_millis(500);

/// Checks this node and prints the problems.
///
/// # Errors
/// The check failed.
pub async fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let node_check = match &args.node {
        Some(node) => Some(NodeCheck::open(node, args).await?),
        None => None,
    };
    let check = async || {
        let mut found = pod_problems(&args.paths.run_dir).await?;
        if let Some(node_check) = &node_check {
            found.extend(node_check.problems().await?);
        }
        Ok::<_, anyhow::Error>(found)
    };
    let mut found = check().await?;
    if !found.is_empty() {
        tokio::time::sleep(CONFIRMATION_DELAY).await;
        let confirmed = check().await?;
        found.retain(|problem| confirmed.contains(problem));
    }
    for problem in &found {
        println!("{problem}");
    }
    let code = u8::try_from(found.len().min(MAX_EXIT_CODE)).unwrap_or(u8::MAX);
    Ok(ExitCode::from(code))
}

/// The problems of pods.
async fn pod_problems(run_dir: &Path) -> anyhow::Result<Vec<String>> {
    let store = Store::new(run_dir);
    let context = || format!("read the attachments in {}", run_dir.display());
    // In the order of the agent (`pods`), for the same reason: records, ADDs in progress, kernel.
    let records = store.list().with_context(context)?;
    let add_in_progress = add_in_progress(&store, &records)?;
    let actual = Rtnl::new()?.read().await?;
    let check = PodCheck {
        actual: &actual,
        records: &records,
        add_in_progress,
        node: NodeConfig::read(run_dir),
    };
    Ok(check.problems())
}

/// The compared state of pods.
struct PodCheck<'a> {
    actual: &'a NetworkState,
    records: &'a Records,
    add_in_progress: BTreeSet<IpAddr>,
    node: Result<NodeConfig, NodeConfigError>,
}

impl PodCheck<'_> {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        for (ip, record) in self.records {
            match record {
                _ if self.add_in_progress.contains(ip) => {}
                Err(error) => {
                    problems.push(format!("The attachment of {ip} cannot be read: {error}."));
                }
                Ok(attachment) => {
                    problems.extend(self.address_problems(*ip, attachment));
                    if seen.insert(&attachment.owner) {
                        problems.extend(self.attachment_problems(attachment));
                    }
                }
            }
        }
        let survey = Survey::new(self.actual, self.records);
        problems.extend(
            survey
                .orphan_candidates(&self.add_in_progress)
                .iter()
                .filter_map(orphan_problem),
        );
        problems.extend(self.node_config_problem());
        problems
    }

    /// The problems of one address of an attachment.
    fn address_problems(&self, ip: IpAddr, attachment: &Attachment) -> Vec<String> {
        let mut problems = Vec::new();
        if !attachment.addresses.iter().any(|address| address.ip == ip) {
            problems.push(format!(
                "The record of address {ip} belongs to {}, which has another address.",
                attachment.display_name()
            ));
        }
        let local = self
            .actual
            .addresses
            .keys()
            .find(|key| key.net.addr() == ip);
        problems.extend(local.map(|key| {
            format!(
                "Address {ip} of {} is also one of the node's link {}.",
                attachment.display_name(),
                key.link
            )
        }));
        if let Ok(node) = &self.node
            && !blocks(node).any(|block| block.contains(&ip))
        {
            problems.push(format!(
                "Address {ip} of {} is in no block of this node.",
                attachment.display_name()
            ));
        }
        problems
    }

    /// The problems of an attachment.
    fn attachment_problems(&self, attachment: &Attachment) -> Vec<String> {
        let unrecorded = attachment.addresses.iter().filter(|address| {
            let record = self.records.get(&address.ip);
            !record.is_some_and(|record| record.as_ref().is_ok_and(|found| found == attachment))
        });
        let mut problems: Vec<String> = unrecorded
            .map(|address| {
                format!(
                    "Address {} of {} has no record.",
                    address.ip,
                    attachment.display_name()
                )
            })
            .collect();
        if self.actual.links.contains_key(&attachment.host_link) {
            for expected in [pod::host_state(attachment), pod::bridge_state(attachment)] {
                let found = pod::differences(self.actual, &expected);
                problems.extend(
                    found
                        .iter()
                        .map(|found| format!("For {}: {found}.", attachment.display_name())),
                );
            }
        } else {
            problems.push(format!(
                "Link {} of {} does not exist, but its addresses are still assigned.",
                attachment.host_link,
                attachment.display_name()
            ));
        }
        problems
    }

    fn node_config_problem(&self) -> Option<String> {
        match &self.node {
            Ok(_) => None,
            // A node without pods may have no node.json yet.
            Err(NodeConfigError::Missing) if self.records.is_empty() => None,
            Err(error) => Some(format!(
                "The blocks of this node are unknown: {}.",
                error_chain(error)
            )),
        }
    }
}

fn blocks(node: &NodeConfig) -> impl Iterator<Item = &ipnet::IpNet> {
    let allocatable = node.pools.iter().flat_map(|pool| &pool.blocks);
    allocatable.chain(&node.withdrawn)
}

fn orphan_problem(candidate: &OrphanCandidate) -> Option<String> {
    match candidate {
        // Reported with the attachment.
        OrphanCandidate::Attachment(_) => None,
        OrphanCandidate::Link(link) => Some(format!(
            "Link {link} has the name of a pod's link, but belongs to no pod."
        )),
        OrphanCandidate::LinkInUse(link) => Some(format!(
            "Link {link} belongs to a pod without an attachment, so another pod can get its address."
        )),
        OrphanCandidate::Route(key) => Some(format!(
            "Route {key} has the protocol of a pod's route, but belongs to no pod."
        )),
        OrphanCandidate::Neighbour(key) => Some(format!(
            "Neighbour {} on link {} belongs to no pod.",
            key.ip, key.link
        )),
    }
}

#[cfg(test)]
mod tests {
    use netweft_cni::env::Pod;
    use netweft_cni::node::{PodInterface, PoolConfig};

    use super::*;

    fn attachment(ip: &str) -> Attachment {
        let pod = Pod {
            namespace: Some("default".into()),
            name: Some("web-0".into()),
            uid: None,
        };
        Attachment {
            pod,
            ..crate::pods::tests::attachment("one", &[ip])
        }
    }

    fn node(blocks: &[&str], withdrawn: &[&str]) -> NodeConfig {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        NodeConfig {
            version: 1,
            pools: vec![PoolConfig {
                name: "p".into(),
                cidr: None,
                pod_interface: PodInterface::Routed,
                bridge: None,
                mtu: 1350,
                blocks: nets(blocks),
                reserved: vec![],
                namespaces: None,
                disabled: false,
            }],
            withdrawn: nets(withdrawn),
            namespaces: None,
        }
    }

    fn problems(
        state: &NetworkState,
        attachment: Option<Attachment>,
        node: Result<NodeConfig, NodeConfigError>,
    ) -> Vec<String> {
        let records = attachment
            .map(|attachment| (attachment.addresses[0].ip, Ok(attachment)))
            .into_iter()
            .collect();
        let check = PodCheck {
            actual: state,
            records: &records,
            add_in_progress: BTreeSet::new(),
            node,
        };
        check.problems()
    }

    #[test]
    fn check_accepts_address_in_own_or_withdrawn_block() {
        let one = attachment("10.0.0.2");
        let state = pod::host_state(&one);
        let check = |node| problems(&state, Some(one.clone()), Ok(node));
        assert_eq!(check(node(&["10.0.0.0/26"], &[])), Vec::<String>::new());
        assert_eq!(check(node(&[], &["10.0.0.0/26"])), Vec::<String>::new());
        let expected = ["Address 10.0.0.2 of pod default/web-0 is in no block of this node."];
        assert_eq!(check(node(&["10.0.1.0/26"], &[])), expected);
    }

    #[test]
    fn check_requires_node_config_only_with_pods() {
        let missing = || Err(NodeConfigError::Missing);
        let empty = NetworkState::default();
        assert_eq!(problems(&empty, None, missing()), Vec::<String>::new());
        let one = attachment("10.0.0.2");
        let found = problems(&pod::host_state(&one), Some(one), missing());
        assert!(found[0].starts_with("The blocks of this node are unknown"));
        assert_eq!(found.len(), 1);
    }
}
