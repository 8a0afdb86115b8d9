//! Pods that still have addresses of ours.

use std::collections::BTreeSet;

use std::time::Duration;

use anyhow::Context;
use netweft_cni::attachment::{Attachment, Store};
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::{LinkName, NetworkState};
use netweft_netstate::owner::Owner;

use crate::commands::args::CleanArgs;
use crate::commands::clean::files::Files;
use crate::pods::{Records, add_in_progress};

/// How long the plugin may keep its lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How many pods are named.
const MAX_LISTED: usize = 5;

/// Sees to it that no pod begins, if none is there. Returns why not, in sentences.
///
/// # Errors
/// The records or the kernel cannot be read, the plugin's lock cannot be had, the files cannot be removed.
pub async fn close(
    args: &CleanArgs,
    kernel: &impl Kernel,
    files: &Files,
) -> anyhow::Result<Vec<String>> {
    let run_dir = &args.paths.run_dir;
    let store = Store::new(run_dir);
    // Whoever has chosen an address before this has a record, and whoever comes after it finds no blocks to choose from.
    let lock = run_dir
        .exists()
        .then(|| store.lock(LOCK_TIMEOUT))
        .transpose();
    let _lock = lock.context("wait for the plugin")?;
    let records = if run_dir.exists() {
        store.list().context("read the attachments")?
    } else {
        Records::new()
    };
    let add_in_progress = add_in_progress(&store, &records).map_err(anyhow::Error::msg)?;
    let mut reasons = Vec::new();
    if !add_in_progress.is_empty() {
        reasons.push("A pod is being started on this node.".to_owned());
    }
    if !args.force {
        reasons.extend(who_lives(&kernel.read().await?, &records));
    }
    if reasons.is_empty() {
        files.close().context("remove what pods begin with")?;
    }
    Ok(reasons)
}

/// The pods with a link, in a sentence.
fn who_lives(actual: &NetworkState, records: &Records) -> Option<String> {
    let links = actual.links.keys();
    let links: BTreeSet<&LinkName> = links
        .filter(|link| Owner::plugin().owns_link(link))
        .collect();
    let attachments = records.values().filter_map(|record| record.as_ref().ok());
    let name = |link: &&LinkName| {
        let mut attachments = attachments.clone();
        let attachment = attachments.find(|attachment| attachment.host_link == **link);
        attachment.map_or_else(
            || format!("the owner of link {link}"),
            Attachment::display_name,
        )
    };
    let mut names: Vec<String> = links.iter().map(name).collect();
    if names.is_empty() {
        return None;
    }
    let more = names.len().saturating_sub(MAX_LISTED);
    names.truncate(MAX_LISTED);
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    Some(format!(
        "Pods on this node have their network from netweft: {}{more}. They keep it; cleaning goes on when they are gone. Delete or \
         drain them, or set cleanup.force (--force) to cut them off.",
        names.join(", ")
    ))
}
