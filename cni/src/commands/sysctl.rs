//! Settings of a pod's link that netlink does not have.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use netweft_netstate::model::LinkName;

use super::io_error;
use crate::error::PluginError;

/// The host's end. `ipv6`: whether the pod has an IPv6 address; `bridged`: whether the link is a port of the bridge.
///
/// Reverse path filtering of a routed pod is strict (RFC 3704, section 2.2), because the routes of the pod's addresses lead to this
/// link. Router advertisements of pods are ignored (CVE-2020-10749). Forwarding and IPv6 are enabled, whatever the node's
/// defaults for new links are.
pub(super) fn host(link: &LinkName, ipv6: bool, bridged: bool) -> Result<(), PluginError> {
    if !bridged {
        write("ipv4", link, "rp_filter", "1")?;
    }
    write("ipv4", link, "forwarding", "1")?;
    if ipv6 {
        needs_ipv6()?;
        write("ipv6", link, "disable_ipv6", "0")?;
    }
    write("ipv6", link, "accept_ra", "0")
}

/// A kernel that was booted with `ipv6.disable=1` has no IPv6 parameters (`inet6_init`).
fn needs_ipv6() -> Result<(), PluginError> {
    if Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    Err(PluginError::TryLater(
        "the kernel of this node has no IPv6, but the pod gets an IPv6 address: boot the node without ipv6.disable=1, or \
         exclude the node from IPv6 IPPools by spec.nodeSelector"
            .to_owned(),
    ))
}

/// The pod's end. `ipv6`: whether the pod has an IPv6 address; some runtimes disable the family by default. `announces`:
/// whether the kernel announces the pod's addresses when the link gets an Ethernet address.
pub(super) fn pod(link: &LinkName, ipv6: bool, announces: bool) -> Result<(), PluginError> {
    if ipv6 {
        write("ipv6", link, "disable_ipv6", "0")?;
    }
    if announces {
        write("ipv4", link, "arp_notify", "1")?;
        write("ipv6", link, "ndisc_notify", "1")?;
    }
    write("ipv6", link, "accept_ra", "0")
}

fn write(family: &str, link: &LinkName, name: &str, value: &str) -> Result<(), PluginError> {
    let path: PathBuf = ["/proc/sys/net", family, "conf", link.as_str(), name]
        .iter()
        .collect();
    match fs::write(&path, value) {
        // A kernel without IPv6.
        Err(error) if family == "ipv6" && error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(io_error(&format!("write {value} to {}", path.display()))),
    }
}
