//! GC: takes away what belongs to no attachment that the runtime knows: records, and links without any record.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::LinkName;
use netweft_netstate::owner;
use netweft_netstate::rtnl::Rtnl;

use super::del::{delete_links, release};
use super::{block_on, io_error, store};
use crate::conf::{NetConf, ValidAttachment};
use crate::env::Owner;
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
    let valid: BTreeSet<Owner> = valid.iter().filter_map(known).collect();
    let store = store(conf);
    let mut garbage: BTreeMap<Owner, (BTreeSet<LinkName>, Vec<IpAddr>)> = BTreeMap::new();
    for (ip, record) in store.list().map_err(io_error("read the attachments"))? {
        if let Ok(record) = record
            && !valid.contains(&record.owner)
        {
            let (links, addresses) = garbage.entry(record.owner).or_default();
            links.insert(record.host_link);
            addresses.push(ip);
        }
    }
    let mut problems = Vec::new();
    for (owner, (links, addresses)) in garbage {
        let freed = block_on(delete_links(links)).and_then(|()| release(&store, &owner, addresses));
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
    Err(PluginError::Teardown(
        problems.iter().map(ToString::to_string).collect(),
    ))
}

fn known(valid: &ValidAttachment) -> Option<Owner> {
    let if_name = valid.if_name.parse().ok()?;
    Some(Owner {
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
