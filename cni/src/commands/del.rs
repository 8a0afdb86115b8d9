//! DEL: removes the links and records of an owner, as far as they exist. DEL can be repeated, and needs neither the sandbox
//! nor the agent.
//!
//! DEL deletes the link first: while the link exists, its addresses are in use and must stay allocated.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netweft_netstate::model::LinkName;
use netweft_netstate::owner;
use netweft_netstate::rtnl::Rtnl;

use super::{attachments_error, block_on, lock, log_unreadable_record, store};
use crate::attachment::Store;
use crate::conf::NetConf;
use crate::env::AttachmentId;
use crate::error::PluginError;
use crate::pod;

/// Detaches a sandbox.
pub(super) fn del(conf: &NetConf, owner: &AttachmentId) -> Result<(), PluginError> {
    let store = store(conf);
    let mut links = BTreeSet::from([pod::identity(owner).host_link]);
    let mut addresses = Vec::new();
    let records = store
        .list()
        .map_err(attachments_error("read the attachment records", conf))?;
    for (ip, record) in records {
        match record {
            Ok(found) if found.owner == *owner => {
                addresses.push(ip);
                links.insert(found.host_link);
            }
            Ok(_) => {}
            Err(error) => log_unreadable_record(ip, &error),
        }
    }
    block_on(delete_links(links))?;
    release(conf, &store, owner, addresses)
}

/// Deletes links with names of the plugin. Records name no other links.
pub(super) async fn delete_links(links: BTreeSet<LinkName>) -> Result<(), PluginError> {
    let kernel = Rtnl::new()?;
    let mut problems = Vec::new();
    for link in links
        .iter()
        .filter(|link| owner::Owner::plugin().owns_link(link))
    {
        if let Err(error) = kernel.delete_link(link).await {
            problems.push(PluginError::from(error).with_causes());
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(PluginError::Teardown(problems))
    }
}

/// Releases the addresses. Without addresses, the lock is not needed.
pub(super) fn release(
    conf: &NetConf,
    store: &Store,
    owner: &AttachmentId,
    addresses: Vec<IpAddr>,
) -> Result<(), PluginError> {
    if addresses.is_empty() {
        return Ok(());
    }
    lock(store)?
        .release(owner, addresses)
        .map_err(attachments_error("remove the attachment record", conf))
}
