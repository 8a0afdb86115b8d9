//! A probe that passes the forward hook like a packet of a pod.
//!
//! ```text
//!   ICMP socket ─▶ nwprobe0 ═ veth ═ nwprobe1 ─▶ prerouting ─▶ forward (iif nwprobe1) ─▶ route to the other node ─▶ answer: input
//! ```
//!
//! The source of the packet is the address of the node in its block, and the packet enters by a link whose name begins with `nw`, like the
//! links of pods. The destination is the same address of another node, which replies without a pod. The same request, sent directly, shows
//! whether the other node is up. IPv4 only: IPv6 sends by a given link only if a route has this link.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net};
use netweft_common::link_names::FIREWALL_PROBE;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::{Address, AddressKey, LinkName, Mac, Neighbour, NeighbourKey};
use netweft_netstate::op::Op;
use netweft_netstate::rtnl::{Rtnl, VethPair};
use socket2::Socket;
use tokio::time::sleep;

use crate::apply::sysctl::Parameters;
use crate::probes::sender::{Protocol, replies, socket};

/// Ethernet addresses of the two links, locally administered.
const MACS: [Mac; 2] = [Mac([2, 0x6e, 0x77, 0, 0, 0]), Mac([2, 0x6e, 0x77, 0, 0, 1])];
/// Address of the second link: IPv4 link-local (RFC 3927), used by no other host.
const ADDRESS: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 78, 78), 32));
const MTU: u32 = 1280;
/// Maximum number of nodes that are probed.
pub const MAX_TARGETS: usize = 3;
/// Time limit of replies, and interval at which the sockets are read.
const TIMEOUT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

/// The targets of a probe, from the reconciler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// The address of the node in a block.
    pub from: Option<IpAddr>,
    /// The same addresses of other nodes.
    pub to: Vec<IpAddr>,
}

/// The result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Another node has replied to a forwarded request.
    Forwarded,
    /// Other nodes reply to direct requests, and not to forwarded ones.
    Dropped,
    /// There is no other node, or no node replies.
    Unknown,
}

/// Sends probes, and keeps the links for them while they are needed.
pub struct Prober {
    sysctl_dir: PathBuf,
    parameters: Parameters,
    /// Whether this process has created the links. Links of an earlier process may be incomplete.
    linked: bool,
}

impl Prober {
    /// A prober. `sysctl_dir`: `/proc/sys/net` of the node.
    #[must_use]
    pub fn new(sysctl_dir: PathBuf, parameters: Parameters) -> Self {
        Self {
            sysctl_dir,
            parameters,
            linked: false,
        }
    }

    /// Probes the first of `targets`.
    ///
    /// # Errors
    /// The links cannot be created or used.
    pub async fn probe(&mut self, targets: &Targets) -> anyhow::Result<Outcome> {
        let Some(from) = targets.from else {
            return Ok(Outcome::Unknown);
        };
        let to = &targets.to;
        if to.is_empty() {
            return Ok(Outcome::Unknown);
        }
        self.parameters.allow_ping_sockets()?;
        let kernel = Rtnl::new()?;
        if !self.linked {
            self.make_links(&kernel).await?;
        }
        // If another program has deleted the links, the next probe creates them again.
        self.linked = false;
        self.resolve(&kernel, to).await?;
        let [by, _] = links()?;
        self.linked = true;
        // First, and by another socket than the direct request: a connection that is tracked as established passes most firewalls.
        for _ in 0..2 {
            if answers(&Echo::send(from, to, Some(&by))?).await {
                return Ok(Outcome::Forwarded);
            }
            if !answers(&Echo::send(from, to, None)?).await {
                return Ok(Outcome::Unknown);
            }
        }
        Ok(Outcome::Dropped)
    }

    /// Removes the links, if they are there.
    ///
    /// # Errors
    /// They cannot be removed.
    pub async fn remove_links(&mut self) -> anyhow::Result<()> {
        self.linked = false;
        remove_links(&Rtnl::new()?).await
    }

    async fn make_links(&self, kernel: &Rtnl) -> anyhow::Result<()> {
        let [first, second] = links()?;
        remove_links(kernel).await?;
        let here = File::open("/proc/self/ns/net").context("open /proc/self/ns/net")?;
        let [host_mac, peer_mac] = MACS;
        let pair = VethPair {
            host_name: first.clone(),
            host_mac,
            peer_name: second.clone(),
            peer_mac,
            mtu: MTU,
        };
        kernel.add_veth(&pair, here.as_fd()).await?;
        for link in [&first, &second] {
            // Without IPv6 there is no duplicate address detection and no router solicitation on them.
            let _ = self.set(&format!("ipv6/conf/{link}/disable_ipv6"), "1");
        }
        // The source is an address of this node. A loose reverse path filter lets it pass on a link that has an address
        // (`__fib_validate_source`); the strict one of `all` would not, and the larger value counts.
        self.set(&format!("ipv4/conf/{second}/accept_local"), "1")?;
        self.set(&format!("ipv4/conf/{second}/rp_filter"), "2")?;
        self.set(&format!("ipv4/conf/{second}/forwarding"), "1")?;
        let address = Op::AddressAdd {
            key: AddressKey {
                link: second.clone(),
                net: ADDRESS,
            },
            address: Address { link_scope: true },
        };
        kernel.apply(&address).await?;
        for name in [second, first] {
            let up = Op::LinkChange {
                name,
                mtu: None,
                mac: None,
                up: Some(true),
            };
            kernel.apply(&up).await?;
        }
        Ok(())
    }

    /// Adds neighbours to the links, because no host answers ARP there.
    async fn resolve(&self, kernel: &Rtnl, to: &[IpAddr]) -> anyhow::Result<()> {
        let [link, _] = links()?;
        let [_, mac] = MACS;
        for ip in to {
            let set = Op::NeighbourReplace {
                key: NeighbourKey {
                    link: link.clone(),
                    ip: *ip,
                },
                neighbour: Neighbour {
                    mac: Some(mac),
                    permanent: true,
                },
            };
            kernel.apply(&set).await?;
        }
        Ok(())
    }

    fn set(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let path = self.sysctl_dir.join(name);
        fs::write(&path, value).with_context(|| format!("set {} to {value}", path.display()))
    }
}

async fn remove_links(kernel: &Rtnl) -> anyhow::Result<()> {
    let [first, _] = links()?;
    // The other end goes with it.
    Ok(kernel.delete_link(&first).await?)
}

fn links() -> anyhow::Result<[LinkName; 2]> {
    let [first, second] = FIREWALL_PROBE;
    Ok([first.parse()?, second.parse()?])
}

/// Requests under way.
struct Echo(Vec<UdpSocket>);

impl Echo {
    /// Sends a request to each of `to`, by a link or by the routing table.
    fn send(from: IpAddr, to: &[IpAddr], by: Option<&LinkName>) -> io::Result<Self> {
        let any = socket(Protocol::Icmp, true, (Some(from), 0))?;
        let identifier = any.local_addr()?.port();
        let mut sockets = vec![any];
        for (nonce, to) in (1..).zip(to) {
            let sender = Socket::from(socket(Protocol::Icmp, true, (Some(from), identifier))?);
            if let Some(by) = by {
                sender.bind_device(Some(by.as_str().as_bytes()))?;
            }
            let sender = UdpSocket::from(sender);
            sender.send_to(&Protocol::Icmp.request(true, nonce), (*to, 0))?;
            sockets.push(sender);
        }
        Ok(Self(sockets))
    }

    fn is_answered(&self) -> bool {
        let answers = self.0.iter();
        let mut answers = answers.flat_map(|socket| replies(Protocol::Icmp, socket));
        answers.next().is_some()
    }
}

/// Whether any request is answered in time.
async fn answers(echo: &Echo) -> bool {
    let mut left = TIMEOUT;
    while !left.is_zero() {
        sleep(POLL).await;
        if echo.is_answered() {
            return true;
        }
        left = left.saturating_sub(POLL);
    }
    false
}
