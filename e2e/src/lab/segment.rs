//! The link that the nodes share, its guard, and a host on it that is no node.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;

use super::namespace::Namespace;
use super::node::Node;
use super::objects::Families;
use crate::command::output;
use crate::run::Run;

/// Bytes of the largest packet. Not the usual 1500: nothing may rely on it.
pub const MTU: u32 = 1400;
/// Number of the host outside on the segment.
const OUTSIDE: u8 = 200;
/// Port of its server.
const PORT: u16 = 8080;

/// The addresses of host number `number`, those that are for documentation (RFC 5737, RFC 3849), with the segment's
/// prefix length.
pub fn addresses(families: Families, number: u8) -> Vec<IpNet> {
    let v4 = IpAddr::V4(Ipv4Addr::new(192, 0, 2, number));
    let v6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()));
    [IpNet::new_assert(v4, 24), IpNet::new_assert(v6, 64)]
        .into_iter()
        .filter(|net| families.has(net.addr()))
        .collect()
}

/// The shared link.
pub struct Segment {
    space: Namespace,
    outside: Namespace,
    families: Families,
    masquerading: bool,
}

impl Segment {
    /// A bridge in a namespace of its own, with a guard against pods' addresses in outer headers, and a host outside.
    /// Only this host may meet them, and only where nobody masquerades.
    pub fn make(run: &mut Run, families: Families, masquerading: bool) -> anyhow::Result<Self> {
        let segment = Self {
            space: Namespace::network(run)?,
            outside: Namespace::network(run)?,
            families,
            masquerading,
        };
        segment
            .space
            .ip(&format!("link add segment mtu {MTU} type bridge"))?;
        segment.space.ip("link set segment up")?;
        segment.guard()?;
        segment.attach(&segment.outside, "host0", OUTSIDE)?;
        Ok(segment)
    }

    /// IP families on the segment.
    pub fn families(&self) -> Families {
        self.families
    }

    /// The servers of the host outside, one address of each family.
    pub fn servers(&self) -> impl Iterator<Item = SocketAddr> {
        let addresses = addresses(self.families, OUTSIDE).into_iter();
        addresses.map(|net| SocketAddr::new(net.addr(), PORT))
    }

    /// Connect a namespace by a link called `name` there, as host number `number`.
    pub fn attach(&self, space: &Namespace, name: &str, number: u8) -> anyhow::Result<()> {
        let port = format!("p{}", space.pid());
        self.space.ip(&format!(
            "link add {port} mtu {MTU} type veth peer name {name} mtu {MTU} netns {}",
            space.pid()
        ))?;
        self.space
            .ip(&format!("link set {port} master segment up"))?;
        for net in addresses(self.families, number) {
            // Nobody else has the address, so looking for a duplicate would only cost a second.
            let nodad = if net.addr().is_ipv6() { "nodad" } else { "" };
            space.ip(&format!("address add {net} dev {name} {nodad}"))?;
        }
        space.ip(&format!("link set {name} up"))?;
        Ok(())
    }

    /// Let the host outside answer.
    pub fn start_server(&self, run: &mut Run, binaries: &Path) -> anyhow::Result<()> {
        let mut command = self.outside.command(binaries.join("netweft-probe"));
        command.args(["serve", "--port", &PORT.to_string()]);
        let log = run.folder().join("outside.log");
        self.outside.start(run, &mut command, &log)?;
        for server in self.servers() {
            let ask = || self.outside.ask(binaries, "tcp", server);
            crate::poll::until("the server outside", Duration::from_secs(5), ask)?;
        }
        Ok(())
    }

    /// Tell the host outside by which node it reaches a pod.
    pub fn show_outside_the_way(&self, pod: IpAddr, node: IpAddr) -> anyhow::Result<()> {
        let way = format!("route replace {pod} via {node} dev host0");
        self.outside.ip(&way).map(drop)
    }

    fn guard(&self) -> anyhow::Result<()> {
        let rule = |pods: IpNet| {
            let header = if pods.addr().is_ipv4() { "ip" } else { "ip6" };
            let outside = addresses(self.families, OUTSIDE)
                .into_iter()
                .map(|net| net.addr())
                .find(|address| !self.masquerading && address.is_ipv4() == pods.addr().is_ipv4());
            [("saddr", "daddr"), ("daddr", "saddr")].map(|(field, other)| {
                let but = outside.map(|address| format!("{header} {other} != {address} "));
                let but = but.unwrap_or_default();
                format!("{header} {field} {pods} {but}counter name dropped drop\n")
            })
        };
        let rules: String = self.families.pools().flat_map(rule).collect();
        // Before br_netfilter, where that is loaded: what it takes up at 0 does not come back to chains of that priority.
        let table = format!(
            "table bridge guard {{
                counter dropped {{ }}
                chain forward {{
                    type filter hook forward priority -200;
                    {rules}
                }}
            }}"
        );
        let mut child = self
            .space
            .command("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("start nft")?;
        child
            .stdin
            .take()
            .context("nft has no input")?
            .write_all(table.as_bytes())?;
        anyhow::ensure!(child.wait()?.success(), "nft refused the segment's guard");
        Ok(())
    }

    /// Frames that the guard has dropped.
    pub fn dropped(&self) -> anyhow::Result<u64> {
        let json = output(
            self.space
                .command("nft")
                .args(["-j", "list", "counter", "bridge", "guard", "dropped"]),
        )?;
        let value: serde_json::Value = serde_json::from_str(&json)?;
        let packets = value.pointer("/nftables").and_then(|entries| {
            entries
                .as_array()?
                .iter()
                .find_map(|entry| entry.pointer("/counter/packets")?.as_u64())
        });
        packets.context("nft did not tell the guard's counter")
    }

    /// Send one packet of each family with a pod's address in the outer header to a node, and see it dropped. It is
    /// sent by the host outside: a node would masquerade it.
    pub fn prove_guard(&self, to: &Node) -> anyhow::Result<()> {
        self.families
            .pools()
            .try_for_each(|pool| self.prove_guard_of(pool, to))
    }

    fn prove_guard_of(&self, pool: IpNet, to: &Node) -> anyhow::Result<()> {
        let before = self.dropped()?;
        let pod = super::objects::unused_pod_address(pool);
        let target = to.address_like(pod).context("a node has the family")?;
        self.outside.ip(&format!("address add {pod} dev lo"))?;
        let mut ping: Command = self.outside.command("ping");
        ping.args([
            "-c",
            "1",
            "-W",
            "1",
            "-I",
            &pod.to_string(),
            &target.to_string(),
        ]);
        let answered = crate::command::run(&mut ping)?.status.success();
        self.outside.ip(&format!("address delete {pod} dev lo"))?;
        let dropped = self.dropped()? - before;
        anyhow::ensure!(
            !answered && dropped > 0,
            "the segment's guard let a frame with a pod's address pass"
        );
        Ok(())
    }
}
