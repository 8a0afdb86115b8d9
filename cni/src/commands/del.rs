//! DEL: takes away what belongs to an owner, however much of it there is. Repeatable; needs neither sandbox nor agent.
//!
//! The link goes first. While it exists its addresses are in use, whatever the records say, so they stay taken.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netweft_netstate::model::LinkName;
use netweft_netstate::owner;
use netweft_netstate::rtnl::Rtnl;

use super::{attachments_error, block_on, lock, say_unreadable, store};
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
        .map_err(attachments_error("read the attachments", conf))?;
    for (ip, record) in records {
        match record {
            Ok(found) if found.owner == *owner => {
                addresses.push(ip);
                links.insert(found.host_link);
            }
            Ok(_) => {}
            Err(error) => say_unreadable(ip, &error),
        }
    }
    block_on(delete_links(links))?;
    release(conf, &store, owner, addresses)
}

/// Deletes links of ours; what else is there under such a name cannot be, as records name only what ADD made.
pub(super) async fn delete_links(links: BTreeSet<LinkName>) -> Result<(), PluginError> {
    let kernel = Rtnl::new()?;
    let mut problems = Vec::new();
    for link in links
        .iter()
        .filter(|link| owner::Owner::plugin().owns_link(link))
    {
        if let Err(error) = kernel.delete_link(link).await {
            problems.push(PluginError::from(error).in_full());
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(PluginError::Teardown(problems))
    }
}

/// Gives the addresses back. Nothing to give back needs no lock.
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
        .map_err(attachments_error("remove the attachment", conf))
}
