//! Settings of a pod's link that netlink cannot make.

use std::fs;
use std::io;
use std::path::PathBuf;

use netweft_netstate::model::LinkName;

use super::io_error;
use crate::error::PluginError;

/// Loose reverse path filtering on the host's end: replies to what came through a tunnel may take another way, and what a
/// pod may send from is decided elsewhere. Router advertisements from pods are never believed (CVE-2020-10749).
pub(super) fn host(link: &LinkName) -> Result<(), PluginError> {
    write("ipv4", link, "rp_filter", "2")?;
    write("ipv6", link, "accept_ra", "0")
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
