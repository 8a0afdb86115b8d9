//! Settings of a pod's link that netlink cannot make.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use netweft_netstate::model::LinkName;

use super::io_error;
use crate::error::PluginError;

/// Loose reverse path filtering on the host's end: replies to what came through a tunnel may take another way, and what a
/// pod may send from is decided elsewhere. Router advertisements from pods are never believed (CVE-2020-10749).
///
/// And whatever the node's defaults for new links are, packets from the pod are forwarded, and with `ipv6`, if the pod has an IPv6 address,
/// the link takes IPv6.
pub(super) fn host(link: &LinkName, ipv6: bool) -> Result<(), PluginError> {
    write("ipv4", link, "rp_filter", "2")?;
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
        "this node's kernel has no IPv6, and the pod is to have an IPv6 address: boot the node without ipv6.disable=1, or keep it out of the IPv6 pools by spec.nodeSelector".to_owned(),
    ))
}

/// Inside the pod's namespace. `ipv6`: whether the pod has an IPv6 address; some runtimes disable the family by default.
/// `announces`: whether the link tells its neighbours when it gets an Ethernet address.
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
