//! Messages about nodes without a usable address.

use kube::ResourceExt;
use netweft_crds::{AddressSelector, IpFamily, NodeNetwork};

use crate::plan::message_lists::list;
use crate::plan::model::index::ClusterIndex;
use crate::plan::validate::network_mode::Mode;
use crate::plan::validate::node_address::AddressChoice;

/// Maximum number of names in a message.
pub(crate) const MAX_LISTED: usize = 5;
/// Remedy for an unusable address.
pub(crate) const REMEDY: &str = "set a unique --node-ip for each kubelet, or select other addresses with spec.nodeAddress of the NetworkMode";

/// Why the node has no usable address, and which address stays in use.
pub fn no_address(index: &ClusterIndex<'_>, mode: &Mode, network: &NodeNetwork) -> String {
    let name = network.name_any();
    // Without tunnels both families are possible. The message is about IPv4.
    let why = no_usable_address(index, mode, &name, index.outer_family(mode));
    let last = network.spec.addresses.of(index.outer_family(mode));
    let kept = last.map(|address| format!("; the last address, {address}, stays in use"));
    format!("{why}{}", kept.unwrap_or_default())
}

/// Why no address of the node is usable for packets to pods of family `inner`, with a remedy.
pub fn no_usable_address(
    index: &ClusterIndex<'_>,
    mode: &Mode,
    node: &str,
    inner: IpFamily,
) -> String {
    let family = mode.node_family(inner, index.outer_family(mode));
    let refused = index
        .choice(node)
        .and_then(|choice| refused(choice, family));
    let Some(selector) = mode.address.of(family) else {
        let usable = if refused.is_some() { "usable " } else { "" };
        let why = refused.map_or_else(String::new, |why| format!(": {why}"));
        return format!(
            "status.addresses of the Node has no {usable}{family} address of type InternalIP{why}"
        );
    };
    let field = format!("spec.nodeAddress {selector}");
    if let Some(why) = refused {
        return format!("{field} selects no usable {family} address of this node: {why}");
    }
    if !index.has_reported(node, mode) {
        return format!(
            "{field} selects {family} addresses, which the agent of this node has not reported yet; if this persists, see the log of the agent"
        );
    }
    format!("{field} {}", no_match(selector, family))
}

/// Why the selector matches none of the addresses that the agent has searched, with a remedy.
fn no_match(selector: &AddressSelector, family: IpFamily) -> String {
    let properties = match family {
        IpFamily::Ipv4 => "",
        IpFamily::Ipv6 => ", neither temporary, deprecated nor tentative",
    };
    let remedy = "correct spec.nodeAddress of the NetworkMode or the addresses of the node";
    if let Some(to) = selector.reaches {
        return format!(
            "selects no address of this node: its kernel does not send to {to} from a global {family} address outside all IPPools{properties}; \
             compare `ip route get {to}` on the node, and {remedy}"
        );
    }
    if let Some(range) = selector.cidr {
        return format!(
            "selects no address of this node: status.addresses of the Node (kubelet's own addresses) has none inside \
             {range}, and no link of this node that is up has a global one outside all IPPools{properties}; compare `ip address` on the node, \
             and {remedy}"
        );
    }
    format!(
        "matches no link of this node that is up and has a global {family} address outside all IPPools{properties}; compare `ip address` on \
         the node, and {remedy}"
    )
}

/// Why the candidates are unusable, with a remedy.
fn refused(choice: &AddressChoice, family: IpFamily) -> Option<String> {
    let refused = choice.refused.iter();
    let refused = refused.filter(|(address, _)| IpFamily::of(*address) == family);
    let refused: Vec<String> = refused
        .map(|(address, fault)| format!("{address} {fault}"))
        .collect();
    (!refused.is_empty()).then(|| format!("{}; {REMEDY}", list(&refused, MAX_LISTED)))
}
