//! [`Pool`]: a validated IPPool. Each IPPool is validated on its own.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ParseExpressionError, Selector};
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{IPPoolSpec, IpFamily};

/// A pool from which blocks can be assigned.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// CIDR without host bits.
    pub cidr: IpNet,
    /// Prefix length of the blocks, at least the length of `cidr`.
    pub block_prefix: u8,
    /// Addresses and ranges inside `cidr` that are never assigned.
    pub reserved: Vec<IpNet>,
    /// Name of its NetworkMode.
    pub mode: String,
    /// Selector of the nodes that get blocks.
    pub nodes: Selector,
    /// Whether the pool has a node selector.
    pub for_some_nodes: bool,
    /// Whether the pool serves all namespaces.
    pub for_all_namespaces: bool,
    /// Whether new blocks may be assigned: the pool is neither disabled nor being deleted.
    pub open: bool,
}

impl Pool {
    /// Family of its addresses.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.cidr.addr())
    }
}

/// Validates an IPPool without looking at other objects.
///
/// # Errors
/// The error and the remedy.
pub fn check(name: &str, spec: &IPPoolSpec, deleting: bool) -> Result<Pool, Verdict> {
    // The pattern has all fields, so that a new field needs a decision here.
    let IPPoolSpec {
        cidr,
        block_size: _, // by block_prefix()
        network_mode,
        pod_interface: _,        // for agents
        nat_outgoing: _,         // for agents
        nat_outgoing_exclude: _, // for agents
        disabled,
        disable_bgp_export: _, // for agents
        reserved,
        node_selector,
        namespace_selector,
    } = spec;
    if *cidr != cidr.trunc() {
        return invalid(format!(
            "spec.cidr {cidr} has host bits; write {}",
            cidr.trunc()
        ));
    }
    let block_prefix = block_prefix(spec)?;
    let nodes = selector(
        "spec.nodeSelector",
        node_selector.clone().unwrap_or_default(),
    )?;
    // The agents evaluate this selector, because they watch namespaces.
    selector(
        "spec.namespaceSelector",
        namespace_selector.clone().unwrap_or_default(),
    )?;
    Ok(Pool {
        name: name.to_owned(),
        cidr: *cidr,
        block_prefix,
        reserved: checked_reserved(cidr, reserved)?,
        mode: network_mode.clone(),
        nodes,
        for_some_nodes: node_selector.is_some(),
        for_all_namespaces: namespace_selector.is_none(),
        open: !disabled && !deleting,
    })
}

/// `reserved` as ranges, without invalid entries. For counts only.
pub fn lenient_reserved(reserved: &[String]) -> Vec<IpNet> {
    reserved
        .iter()
        .filter_map(|text| parse_range(text))
        .collect()
}

fn block_prefix(spec: &IPPoolSpec) -> Result<u8, Verdict> {
    let prefix = spec.block_prefix();
    let (least, most, example) = match spec.cidr {
        IpNet::V4(_) => (20, 30, 26),
        IpNet::V6(_) => (116, 126, 122),
    };
    if !(least..=most).contains(&prefix) {
        return invalid(format!(
            "spec.blockSize {prefix} must be {least} to {most}, for example {example}"
        ));
    }
    if prefix < spec.cidr.prefix_len() {
        return invalid(format!(
            "spec.cidr {} is smaller than one block of /{prefix}; create a pool with a shorter prefix",
            spec.cidr
        ));
    }
    Ok(prefix)
}

fn checked_reserved(cidr: &IpNet, reserved: &[String]) -> Result<Vec<IpNet>, Verdict> {
    reserved
        .iter()
        .map(|text| match parse_range(text) {
            None => invalid(format!(
                "spec.reserved {text:?} is neither an address nor a CIDR; write for example 10.244.7.7 or 10.244.0.0/24"
            )),
            Some(range) if range != range.trunc() => invalid(format!(
                "spec.reserved {text} has host bits; write {} for the range or {} for the address",
                range.trunc(),
                range.addr()
            )),
            Some(range) if !cidr.contains(&range) => invalid(format!(
                "spec.reserved {text} is not inside spec.cidr {cidr}; remove it"
            )),
            Some(range) => Ok(range),
        })
        .collect()
}

fn parse_range(text: &str) -> Option<IpNet> {
    let address: Option<IpAddr> = text.parse().ok();
    address.map(IpNet::from).or_else(|| text.parse().ok())
}

/// Parses a selector.
///
/// # Errors
/// `field` has an invalid operator.
pub fn selector(field: &str, selector: LabelSelector) -> Result<Selector, Verdict> {
    Selector::try_from(selector).map_err(|ParseExpressionError(error)| {
        Verdict::stalled(
            Reason::Invalid,
            format!("{field}: {error}; the operators are In, NotIn, Exists and DoesNotExist"),
        )
    })
}

fn invalid<T>(message: impl Into<String>) -> Result<T, Verdict> {
    Err(Verdict::stalled(Reason::Invalid, message))
}
