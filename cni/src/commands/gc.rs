//! GC: removes the records and links that belong to no valid attachment of the runtime, and links without record.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::LinkName;
use netweft_netstate::owner;
use netweft_netstate::rtnl::Rtnl;

use super::del::{delete_links, release};
use super::{attachments_error, block_on, log_unreadable_record, store};
use crate::conf::{NetConf, ValidAttachment};
use crate::env::AttachmentId;
use crate::error::PluginError;
use crate::pod;

/// Removes as much as possible and reports the rest.
pub(super) fn gc(conf: &NetConf) -> Result<(), PluginError> {
    // An absent list must not count as an empty list, which would detach every pod.
    let Some(valid) = &conf.valid_attachments else {
        return Err(PluginError::Config(
            "field cni.dev/valid-attachments of the network configuration is missing: the container runtime must pass the \
             list of its attachments to GC"
                .to_owned(),
        ));
    };
    let valid: BTreeSet<AttachmentId> = valid.iter().filter_map(attachment_id).collect();
    let store = store(conf);
    let mut garbage: BTreeMap<AttachmentId, (BTreeSet<LinkName>, Vec<IpAddr>)> = BTreeMap::new();
    let records = store
        .list()
        .map_err(attachments_error("read the attachment records", conf))?;
    for (ip, record) in records {
        match record {
            Ok(record) if valid.contains(&record.owner) => {}
            Ok(record) => {
                let (links, addresses) = garbage.entry(record.owner).or_default();
                links.insert(record.host_link);
                addresses.push(ip);
            }
            Err(error) => log_unreadable_record(ip, &error),
        }
    }
    let mut problems = Vec::new();
    for (owner, (links, addresses)) in garbage {
        let removed =
            block_on(delete_links(links)).and_then(|()| release(conf, &store, &owner, addresses));
        problems.extend(removed.err());
    }
    let valid_links = valid
        .iter()
        .map(|owner| pod::identity(owner).host_link)
        .collect();
    problems.extend(block_on(delete_other_links(valid_links)).err());
    if problems.is_empty() {
        return Ok(());
    }
    // As a set: a link that cannot be deleted with its record fails again without its record.
    let messages: BTreeSet<String> = problems.into_iter().flat_map(messages).collect();
    Err(PluginError::Teardown(messages.into_iter().collect()))
}

fn messages(error: PluginError) -> Vec<String> {
    match error {
        PluginError::Teardown(messages) => messages,
        other => vec![other.with_causes()],
    }
}

fn attachment_id(valid: &ValidAttachment) -> Option<AttachmentId> {
    let if_name = valid.if_name.parse().ok()?;
    Some(AttachmentId {
        container_id: valid.container_id.clone(),
        if_name,
    })
}

/// Deletes the links with names of the plugin that are not in `valid`, with or without a record.
async fn delete_other_links(valid: BTreeSet<LinkName>) -> Result<(), PluginError> {
    let state = Rtnl::new()?.read().await?;
    let invalid = |name: &LinkName| owner::Owner::plugin().owns_link(name) && !valid.contains(name);
    delete_links(state.links.into_keys().filter(invalid).collect()).await
}
