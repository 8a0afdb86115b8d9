//! GC: takes away what belongs to no attachment that the runtime knows: records, and links without any record.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::LinkName;
use netweft_netstate::owner;
use netweft_netstate::rtnl::Rtnl;

use super::del::{delete_links, release};
use super::{attachments_error, block_on, say_unreadable, store};
use crate::conf::{NetConf, ValidAttachment};
use crate::env::AttachmentId;
use crate::error::PluginError;
use crate::pod;

/// Removes as much as possible and reports the rest.
pub(super) fn gc(conf: &NetConf) -> Result<(), PluginError> {
    // An absent list must not be taken for an empty one: it would cost every pod its network.
    let Some(valid) = &conf.valid_attachments else {
        return Err(PluginError::Config(
            "cni.dev/valid-attachments: GC needs the list".to_owned(),
        ));
    };
    let valid: BTreeSet<AttachmentId> = valid.iter().filter_map(known).collect();
    let store = store(conf);
    let mut garbage: BTreeMap<AttachmentId, (BTreeSet<LinkName>, Vec<IpAddr>)> = BTreeMap::new();
    let records = store
        .list()
        .map_err(attachments_error("read the attachments", conf))?;
    for (ip, record) in records {
        match record {
            Ok(record) if valid.contains(&record.owner) => {}
            Ok(record) => {
                let (links, addresses) = garbage.entry(record.owner).or_default();
                links.insert(record.host_link);
                addresses.push(ip);
            }
            Err(error) => say_unreadable(ip, &error),
        }
    }
    let mut problems = Vec::new();
    for (owner, (links, addresses)) in garbage {
        let freed =
            block_on(delete_links(links)).and_then(|()| release(conf, &store, &owner, addresses));
        problems.extend(freed.err());
    }
    let live = valid
        .iter()
        .map(|owner| pod::identity(owner).host_link)
        .collect();
    problems.extend(block_on(delete_strays(live)).err());
    if problems.is_empty() {
        return Ok(());
    }
    // A link that could not be deleted with its record could not be deleted as a stray either.
    let said: BTreeSet<String> = problems.into_iter().flat_map(each).collect();
    Err(PluginError::Teardown(said.into_iter().collect()))
}

fn each(problem: PluginError) -> Vec<String> {
    match problem {
        PluginError::Teardown(problems) => problems,
        other => vec![other.in_full()],
    }
}

fn known(valid: &ValidAttachment) -> Option<AttachmentId> {
    let if_name = valid.if_name.parse().ok()?;
    Some(AttachmentId {
        container_id: valid.container_id.clone(),
        if_name,
    })
}

/// Deletes links of ours whose names no valid owner has, with a record or without.
async fn delete_strays(live: BTreeSet<LinkName>) -> Result<(), PluginError> {
    let state = Rtnl::new()?.read().await?;
    let stray = |name: &LinkName| owner::Owner::plugin().owns_link(name) && !live.contains(name);
    delete_links(state.links.into_keys().filter(stray).collect()).await
}
