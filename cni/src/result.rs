//! The result of ADD, in each supported version of the specification. Pure.

use serde::Serialize;

use crate::attachment::Attachment;
use crate::pod;

/// Renders the result of an attachment for a supported `cni_version`.
#[must_use]
pub fn render(attachment: &Attachment, cni_version: &str) -> String {
    // Addresses have `version` before 1.0.0, links have `mtu` since 1.1.0.
    let old = cni_version.starts_with("0.");
    let mtu = (cni_version == "1.1.0").then_some(attachment.mtu);
    let link = |name: &str, mac: String, sandbox| Interface {
        name: name.to_owned(),
        mac,
        mtu,
        sandbox,
    };
    let bridge = attachment
        .bridge
        .as_ref()
        .map(|bridge| link(bridge.link.as_str(), bridge.mac.to_string(), None));
    let host = link(
        attachment.host_link.as_str(),
        attachment.host_mac.to_string(),
        None,
    );
    let inside = link(
        attachment.owner.if_name.as_str(),
        attachment.pod_mac.to_string(),
        Some(attachment.netns.clone()),
    );
    let interfaces: Vec<Interface> = bridge.into_iter().chain([host, inside]).collect();
    // The pod's link is the last.
    let interface = interfaces.len() - 1;
    let ips = attachment.addresses.iter().map(|address| Ip {
        version: old.then_some(if address.ip.is_ipv4() { "4" } else { "6" }),
        address: pod::link_address(address).to_string(),
        gateway: pod::gateway(address).to_string(),
        interface,
    });
    let routes = attachment.addresses.iter().map(|address| Route {
        dst: pod::default_destination(address.ip).to_string(),
        gw: pod::gateway(address).to_string(),
    });
    let result = AddResult {
        cni_version,
        interfaces,
        ips: ips.collect(),
        routes: routes.collect(),
        dns: Dns {},
    };
    serde_json::to_string(&result).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AddResult<'a> {
    cni_version: &'a str,
    interfaces: Vec<Interface>,
    ips: Vec<Ip>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Serialize)]
struct Interface {
    name: String,
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
}

#[derive(Serialize)]
struct Ip {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    address: String,
    gateway: String,
    interface: usize,
}

#[derive(Serialize)]
struct Route {
    dst: String,
    gw: String,
}

#[derive(Serialize)]
struct Dns {}
