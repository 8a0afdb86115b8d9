//! The pods that still have addresses of netweft.

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

/// How long to wait for the plugin's lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of pods in a message.
const MAX_LISTED: usize = 5;

/// Removes the configurations that new pods need, if no pod has an address. Returns the reasons if it does not.
///
/// # Errors
/// The records or the kernel cannot be read, the plugin's lock cannot be acquired, or the files cannot be removed.
pub async fn stop_new_pods(
    args: &CleanArgs,
    kernel: &impl Kernel,
    files: &Files,
) -> anyhow::Result<Vec<String>> {
    let run_dir = &args.paths.run_dir;
    let store = Store::new(run_dir);
    // An ADD that has selected an address before has its record, and a later one finds no blocks.
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
        reasons.extend(running_pods(&kernel.read().await?, &records));
    }
    if reasons.is_empty() {
        let removed = files.remove_configurations();
        removed.context("remove the CNI configuration and node.json")?;
    }
    Ok(reasons)
}

/// A message that names the pods with a link.
fn running_pods(actual: &NetworkState, records: &Records) -> Option<String> {
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
        "Pods on this node use netweft: {}{more}. They keep their network, and cleaning continues after they have ended. Delete or drain \
         them, or set cleanup.force (--force) to clean nevertheless.",
        names.join(", ")
    ))
}
