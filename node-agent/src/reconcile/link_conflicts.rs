//! Conflicts that prevent the link of a tunnel: another link or program uses its VNI, its port or its addresses.
//!
//! VXLAN links of one network namespace share a UDP socket for a port if their flags are equal (`vxlan_find_sock`), and a VNI exists
//! once on it (`vxlan_vni_in_use`): the kernel answers `EEXIST` for the second VNI, and `EADDRINUSE` for a port on which another
//! program listens, or links with other flags do.

use std::fs;
use std::path::Path;

use netweft_netstate::error::Error;
use netweft_netstate::model::{LinkKind, LinkName, NetworkState, Vxlan};
use netweft_netstate::op::Op;
use netweft_netstate::owner::is_netweft_link;
use nix::errno::Errno;

/// The program that listens on a UDP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listener {
    /// A process: its ID and name, for messages.
    Process(String),
    /// A process of another PID namespace, which the agent cannot see.
    Unseen,
}

/// What prevents the link of a tunnel, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkConflict {
    /// Another IPIP link has the same addresses.
    #[error(
        "link {link} is missing: its addresses are used on this node by link {other}; delete that link if nothing needs it (ip link delete {other}), or choose another encapsulation in the NetworkMode"
    )]
    Addresses {
        /// The link of netweft.
        link: LinkName,
        /// The other link.
        other: LinkName,
    },
    /// Another VXLAN link has the VNI.
    #[error(
        "link {link} is missing: VNI {vni} on UDP port {port} is used on this node by link {other}; choose another spec.overlay.vxlan.vni or spec.overlay.vxlan.port in the NetworkMode, or delete that link if nothing needs it (ip link delete {other})"
    )]
    Vni {
        /// The link of netweft.
        link: LinkName,
        /// The VNI.
        vni: u32,
        /// The UDP port.
        port: u16,
        /// The other link.
        other: LinkName,
    },
    /// A VXLAN link with other flags uses the port.
    #[error(
        "link {link} is missing: UDP port {port} is used on this node by link {other}; {OTHER_PORT}, or delete that link if nothing needs it (ip link delete {other})"
    )]
    PortOfLink {
        /// The link of netweft.
        link: LinkName,
        /// The UDP port.
        port: u16,
        /// The other link.
        other: LinkName,
    },
    /// A process of the PID namespace of the agent listens on the port.
    #[error(
        "link {link} is missing: UDP port {port} is used on this node by {process}; {OTHER_PORT}, or end that program"
    )]
    PortOfProcess {
        /// The link of netweft.
        link: LinkName,
        /// The UDP port.
        port: u16,
        /// Number and name of the process.
        process: String,
    },
    /// A process of another PID namespace listens on the port.
    #[error(
        "link {link} is missing: UDP port {port} is used on this node by another program (on the node, ss -ulpn sport = {port} shows which); {OTHER_PORT}, or end that program"
    )]
    PortOfUnseenProcess {
        /// The link of netweft.
        link: LinkName,
        /// The UDP port.
        port: u16,
    },
    /// A link or a process that the agent does not find, perhaps one of another network namespace.
    #[error(
        "link {link} is missing: VNI {vni} or UDP port {port} is used on this node (on the node, ip -d link show type vxlan and ss -uln show the owner); choose others in spec.overlay.vxlan of the NetworkMode"
    )]
    Unknown {
        /// The link of netweft.
        link: LinkName,
        /// The VNI.
        vni: u32,
        /// The UDP port.
        port: u16,
    },
}

const OTHER_PORT: &str = "choose another spec.overlay.vxlan.port in the NetworkMode";

impl LinkConflict {
    /// What prevents the link that `op` adds or changes; `None` if the operation failed for another cause. `listener` finds the
    /// program that listens on a port.
    pub fn find(
        op: &Op,
        error: &Error,
        (actual, desired): (&NetworkState, &NetworkState),
        listener: impl Fn(u16) -> Option<Listener>,
    ) -> Option<Self> {
        let (Op::LinkAdd { name, .. }
        | Op::LinkRecreate { name, .. }
        | Op::LinkChange { name, .. }) = op
        else {
            return None;
        };
        if !matches!(error.errno(), Some(Errno::EADDRINUSE | Errno::EEXIST)) {
            return None;
        }
        match &desired.links.get(name)?.kind {
            LinkKind::Vxlan(vxlan) => Some(vxlan_conflict(name, vxlan, actual, listener)),
            LinkKind::Ipip { .. } => {
                let mut others = foreign_links(actual, name);
                let other = others.find(|(_, kind)| matches!(kind, LinkKind::Ipip { .. }));
                other.map(|(other, _)| Self::Addresses {
                    link: name.clone(),
                    other: other.clone(),
                })
            }
            LinkKind::Tun | LinkKind::Veth | LinkKind::Bridge | LinkKind::Other(_) => None,
        }
    }
}

fn vxlan_conflict(
    name: &LinkName,
    vxlan: &Vxlan,
    actual: &NetworkState,
    listener: impl Fn(u16) -> Option<Listener>,
) -> LinkConflict {
    let Vxlan { vni, port, .. } = vxlan;
    let on_port = |kind: &LinkKind| match kind {
        LinkKind::Vxlan(other) => other.port == *port,
        _ => false,
    };
    let same_vni = |kind: &LinkKind| match kind {
        LinkKind::Vxlan(other) => on_port(kind) && other.vni == *vni,
        _ => false,
    };
    let find = |matches: &dyn Fn(&LinkKind) -> bool| {
        let mut found = foreign_links(actual, name).filter(|(_, kind)| matches(kind));
        found.next().map(|(other, _)| other)
    };
    let (link, vni, port) = (name.clone(), *vni, *port);
    if let Some(other) = find(&same_vni) {
        let other = other.clone();
        return LinkConflict::Vni {
            link,
            vni,
            port,
            other,
        };
    }
    if let Some(other) = find(&on_port) {
        let other = other.clone();
        return LinkConflict::PortOfLink { link, port, other };
    }
    match listener(port) {
        Some(Listener::Process(process)) => LinkConflict::PortOfProcess {
            link,
            port,
            process,
        },
        Some(Listener::Unseen) => LinkConflict::PortOfUnseenProcess { link, port },
        None => LinkConflict::Unknown { link, vni, port },
    }
}

fn foreign_links<'a>(
    actual: &'a NetworkState,
    name: &'a LinkName,
) -> impl Iterator<Item = (&'a LinkName, &'a LinkKind)> {
    let links = actual.links.iter();
    let others = links.filter(move |(other, _)| *other != name && !is_netweft_link(other));
    others.map(|(other, link)| (other, &link.kind))
}

/// The program that listens on a UDP port of this network namespace. Sockets of the kernel, such as those of tunnels, have no process.
pub fn listener(port: u16) -> Option<Listener> {
    let inode = ["udp", "udp6"].iter().find_map(|table| {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok()?;
        inode_in(&table, port)
    })?;
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?;
    let mut processes = processes.filter_map(|entry| {
        let process: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        has_open(process, &socket).then_some(process)
    });
    Some(match processes.next() {
        None => Listener::Unseen,
        Some(process) => {
            let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            Listener::Process(format!("process {process} ({})", name.trim()))
        }
    })
}

/// The inode of a program's socket on this port, from the text of `/proc/net/udp` (`udp4_format_sock`).
fn inode_in(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (_, local) = fields.nth(1)?.rsplit_once(':')?;
        if u16::from_str_radix(local, 16).ok()? != port {
            return None;
        }
        fields.nth(7)?.parse().ok().filter(|inode| *inode != 0)
    })
}

fn has_open(process: u32, socket: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    let mut targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.any(|target| target == Path::new(socket))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn proc_net_udp_socket_of_kernel_has_no_inode() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            1: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0 0\n\
            2: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0\n";
        assert_eq!(inode_in(table, 4789), None);
        assert_eq!(inode_in(table, 8472), Some(4711));
        assert_eq!(inode_in(table, 53), None);
    }

    #[test]
    fn port_listener_is_found_by_process() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let own = format!("process {} (", std::process::id());
        let Some(Listener::Process(found)) = listener(port) else {
            panic!("no process listens");
        };
        assert!(found.starts_with(&own), "{found}");
        drop(socket);
        // A child that another test has forked holds the socket until it executes its program.
        let closed = || listener(port).is_none();
        assert!((0..100).any(|_| closed() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }));
    }
}
