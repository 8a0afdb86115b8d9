//! `netweft-agent check`: whether this node is as it should be. Looks and changes nothing.
//!
//! That is whether records, kernel and `node.json` agree about pods, and, where the Node's name and its objects can be had, whether
//! kernel, nft table, parameters and files are what the agent would make of them (`whole.rs`): it is the same computation, done by
//! another process.
//!
//! It says what it finds in sentences, one a line, and leaves with their number: 0 is a node on which nothing has leaked and
//! nothing is out of place. An ADD under way is nothing to report.

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
use crate::pods::{OrphanCandidate, Records, Survey, add_in_progress};
use netweft_common::error_chain;

use crate::commands::check::node::NodeCheck;

/// Exit codes above say other things than a number of problems.
const MAX_EXIT_CODE: usize = 100;

/// What is wrong only for a moment is a pod that comes or goes: a problem is there twice, this far apart.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Looks at this node and prints what is wrong.
///
/// # Errors
/// It could not look.
pub async fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let whole = match &args.node {
        Some(node) => Some(NodeCheck::open(node, args).await?),
        None => None,
    };
    let observe = async || {
        let mut found = observe(&args.paths.run_dir).await?;
        if let Some(whole) = &whole {
            found.extend(whole.problems().await?);
        }
        Ok::<_, anyhow::Error>(found)
    };
    let mut found = observe().await?;
    if !found.is_empty() {
        tokio::time::sleep(RETRY_INTERVAL).await;
        let still = observe().await?;
        found.retain(|problem| still.contains(problem));
    }
    for problem in &found {
        println!("{problem}");
    }
    let code = u8::try_from(found.len().min(MAX_EXIT_CODE)).unwrap_or(u8::MAX);
    Ok(ExitCode::from(code))
}

async fn observe(run_dir: &Path) -> anyhow::Result<Vec<String>> {
    let store = Store::new(run_dir);
    let what = || format!("read the attachments in {}", run_dir.display());
    // In the order of the agent's own second look, for the same reason: records, who is under way, kernel.
    let records = store.list().with_context(what)?;
    let add_in_progress = add_in_progress(&store, &records)?;
    let actual = Rtnl::new()?.read().await?;
    let check = Check {
        actual: &actual,
        records: &records,
        add_in_progress,
        node: NodeConfig::read(run_dir),
    };
    Ok(check.problems())
}

/// What is compared.
struct Check<'a> {
    actual: &'a NetworkState,
    records: &'a Records,
    add_in_progress: BTreeSet<IpAddr>,
    node: Result<NodeConfig, NodeConfigError>,
}

impl Check<'_> {
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
                    problems.extend(self.address(*ip, attachment));
                    if seen.insert(&attachment.owner) {
                        problems.extend(self.attachment(attachment));
                    }
                }
            }
        }
        let survey = Survey::new(self.actual, self.records);
        problems.extend(
            survey
                .suspects(&self.add_in_progress)
                .iter()
                .filter_map(leak),
        );
        problems.extend(self.node());
        problems
    }

    /// One address of an attachment.
    fn address(&self, ip: IpAddr, attachment: &Attachment) -> Vec<String> {
        let mut problems = Vec::new();
        if !attachment.addresses.iter().any(|address| address.ip == ip) {
            problems.push(format!(
                "The attachment stored for {ip} is that of {}.",
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

    /// What belongs to an attachment as a whole.
    fn attachment(&self, attachment: &Attachment) -> Vec<String> {
        let unrecorded = attachment.addresses.iter().filter(|address| {
            let record = self.records.get(&address.ip);
            !record.is_some_and(|record| record.as_ref().is_ok_and(|found| found == attachment))
        });
        let mut problems: Vec<String> = unrecorded
            .map(|address| {
                format!(
                    "Address {} of {} is not recorded as taken.",
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
                "Link {} of {} is gone, but its addresses are still taken.",
                attachment.host_link,
                attachment.display_name()
            ));
        }
        problems
    }

    fn node(&self) -> Option<String> {
        match &self.node {
            Ok(_) => None,
            // A node that never had a pod is clean.
            Err(NodeConfigError::Missing) if self.records.is_empty() => None,
            Err(error) => Some(format!(
                "What this node may hand out is not known: {}.",
                error_chain(error)
            )),
        }
    }
}

fn blocks(node: &NodeConfig) -> impl Iterator<Item = &ipnet::IpNet> {
    let handed_out = node.pools.iter().flat_map(|pool| &pool.blocks);
    handed_out.chain(&node.withdrawn)
}

fn leak(suspect: &OrphanCandidate) -> Option<String> {
    match suspect {
        // Told with the attachment.
        OrphanCandidate::Attachment(_) => None,
        OrphanCandidate::Link(link) => Some(format!(
            "Link {link} is a pod's by its name, but no pod has it."
        )),
        OrphanCandidate::Orphan(link) => Some(format!(
            "Link {link} carries a pod that has no attachment, so its address can be given to another pod."
        )),
        OrphanCandidate::Route(key) => Some(format!(
            "Route {key} is a pod's by its protocol, but no pod has it."
        )),
        OrphanCandidate::Neighbour(key) => Some(format!(
            "Neighbour {} on link {} is a pod's, but no pod has it.",
            key.ip, key.link
        )),
    }
}

#[cfg(test)]
mod tests {
    use netweft_cni::attachment::{PodAddress, VERSION};
    use netweft_cni::env::{AttachmentId, Pod};
    use netweft_cni::node::{PodInterface, PoolConfig};

    use super::*;

    fn attachment(ip: &str) -> Attachment {
        let owner = AttachmentId {
            container_id: "one".into(),
            if_name: "eth0".parse().unwrap(),
        };
        let pod::Identity {
            host_link,
            host_mac,
            pod_mac,
        } = pod::identity(&owner);
        let address = PodAddress {
            ip: ip.parse().unwrap(),
            pool: "p".into(),
            gateway: None,
        };
        Attachment {
            version: VERSION,
            owner,
            pod: Pod {
                namespace: Some("default".into()),
                name: Some("web-0".into()),
                uid: None,
            },
            netns: String::new(),
            addresses: vec![address],
            host_link,
            host_mac,
            pod_mac,
            bridge: None,
            mtu: 1350,
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
        let check = Check {
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
        let said = ["Address 10.0.0.2 of pod default/web-0 is in no block of this node."];
        assert_eq!(check(node(&["10.0.1.0/26"], &[])), said);
    }

    #[test]
    fn check_requires_node_config_only_with_pods() {
        let missing = || Err(NodeConfigError::Missing);
        let nothing = NetworkState::default();
        assert_eq!(problems(&nothing, None, missing()), Vec::<String>::new());
        let one = attachment("10.0.0.2");
        let said = problems(&pod::host_state(&one), Some(one), missing());
        assert!(said[0].starts_with("What this node may hand out is not known"));
        assert_eq!(said.len(), 1);
    }
}
