//! CHECK: compares record, links, addresses, neighbours and routes of both sides with the state after ADD.

use std::os::fd::AsFd;
use std::path::Path;

use netweft_netstate::kernel::Kernel;
use netweft_netstate::netns;
use netweft_netstate::rtnl::Rtnl;
use serde_json::Value;

use super::{attachments_error, block_on, store};
use crate::attachment::Attachment;
use crate::conf::NetConf;
use crate::env::AttachmentId;
use crate::error::PluginError;
use crate::pod;

/// Compares a sandbox with its record.
pub(super) fn check(
    conf: &NetConf,
    owner: &AttachmentId,
    netns_path: &str,
) -> Result<(), PluginError> {
    let Some(previous) = &conf.prev_result else {
        return Err(PluginError::Config(
            "field prevResult of the network configuration is missing: the container runtime must pass the result of ADD \
             to CHECK"
                .to_owned(),
        ));
    };
    let records = store(conf)
        .list()
        .map_err(attachments_error("read the attachment records", conf))?;
    let Some(attachment) = records
        .values()
        .filter_map(|record| record.as_ref().ok())
        .find(|record| record.owner == *owner)
    else {
        let problem = format!(
            "there is no attachment record for interface {} of container {}",
            owner.if_name, owner.container_id
        );
        // An unreadable record may be the missing one.
        let unreadable = records.iter().filter_map(|(ip, record)| {
            let error = record.as_ref().err()?;
            Some(format!("attachment record {ip} cannot be read: {error}"))
        });
        let problems = std::iter::once(problem).chain(unreadable);
        return Err(PluginError::Check(problems.collect()));
    };
    let mut problems = Vec::new();
    for address in &attachment.addresses {
        if !matches!(records.get(&address.ip), Some(Ok(record)) if record == attachment) {
            problems.push(format!(
                "address {} is not reserved for this attachment",
                address.ip
            ));
        }
    }
    problems.extend(missing_in_result(attachment, previous));
    problems.extend(block_on(compare(attachment, netns_path))?);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(PluginError::Check(problems))
    }
}

/// The links and addresses that the runtime's copy of the result lacks. Later plugins may have added others.
fn missing_in_result(attachment: &Attachment, previous: &Value) -> Vec<String> {
    let texts = |list: &str, field: &str| -> Vec<String> {
        let items = previous
            .get(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        items
            .filter_map(|item| item.get(field)?.as_str().map(ToOwned::to_owned))
            .collect()
    };
    let (links, ips) = (texts("interfaces", "name"), texts("ips", "address"));
    let bridge = attachment.bridge.iter().map(|bridge| &bridge.link);
    let expected_links = bridge
        .chain([&attachment.host_link, &attachment.owner.if_name])
        .map(ToString::to_string);
    let expected_ips = attachment
        .addresses
        .iter()
        .map(|address| pod::link_address(address).to_string());
    let mut problems: Vec<String> = expected_links
        .filter(|name| !links.contains(name))
        .map(|name| format!("link {name} is not in prevResult"))
        .collect();
    problems.extend(
        expected_ips
            .filter(|ip| !ips.contains(ip))
            .map(|ip| format!("address {ip} is not in prevResult")),
    );
    problems
}

async fn compare(attachment: &Attachment, netns_path: &str) -> Result<Vec<String>, PluginError> {
    let host = Rtnl::new()?.read().await?;
    let mut problems = pod::differences(&host, &pod::host_state(attachment));
    problems.extend(pod::differences(&host, &pod::bridge_state(attachment)));
    let netns = netns::open(Path::new(netns_path))?;
    let inside = Rtnl::in_netns(netns.as_fd())?.read().await?;
    problems.extend(pod::differences(&inside, &pod::pod_state(attachment)));
    Ok(problems)
}
