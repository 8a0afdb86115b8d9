//! The link that the nodes share, its guard, and a host on it that is no node.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use ipnet::IpNet;

use super::namespace::Namespace;
use super::node::Node;
use crate::command::output;
use crate::run::Run;

/// Bytes of the largest packet. Not the usual 1500: nothing may rely on it.
pub const MTU: u32 = 1400;
/// The server of the host outside.
pub const OUTSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 200)), 8080);
const PREFIX: u8 = 24;

/// The shared link.
pub struct Segment {
    space: Namespace,
    outside: Namespace,
}

impl Segment {
    /// A bridge in a namespace of its own, with a guard against `pods` in outer headers, and a host outside.
    pub fn make(run: &mut Run, pods: IpNet) -> anyhow::Result<Self> {
        let segment = Self {
            space: Namespace::network(run)?,
            outside: Namespace::network(run)?,
        };
        segment
            .space
            .ip(&format!("link add segment mtu {MTU} type bridge"))?;
        segment.space.ip("link set segment up")?;
        segment.guard(pods)?;
        segment.attach(&segment.outside, "host0", OUTSIDE.ip())?;
        Ok(segment)
    }

    /// Connect a namespace by a link called `name` there, with an address on the segment.
    pub fn attach(&self, space: &Namespace, name: &str, address: IpAddr) -> anyhow::Result<()> {
        let port = format!("p{}", space.pid());
        self.space.ip(&format!(
            "link add {port} mtu {MTU} type veth peer name {name} mtu {MTU} netns {}",
            space.pid()
        ))?;
        self.space
            .ip(&format!("link set {port} master segment up"))?;
        space.ip(&format!("address add {address}/{PREFIX} dev {name}"))?;
        space.ip(&format!("link set {name} up"))?;
        Ok(())
    }

    /// Let the host outside answer.
    pub fn start_server(&self, run: &mut Run, binaries: &Path) -> anyhow::Result<()> {
        let mut command = self.outside.command(binaries.join("netweft-probe"));
        command.args(["serve", "--port", &OUTSIDE.port().to_string()]);
        let log = run.folder().join("outside.log");
        self.outside.start(run, &mut command, &log)?;
        crate::poll::until(
            "the server outside",
            std::time::Duration::from_secs(5),
            || self.outside.ask(binaries, "tcp", OUTSIDE),
        )?;
        Ok(())
    }

    fn guard(&self, pods: IpNet) -> anyhow::Result<()> {
        let header = if pods.network().is_ipv4() {
            "ip"
        } else {
            "ip6"
        };
        let table = format!(
            "table bridge guard {{
                counter dropped {{ }}
                chain forward {{
                    type filter hook forward priority 0;
                    {header} saddr {pods} counter name dropped drop
                    {header} daddr {pods} counter name dropped drop
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

    /// Send one packet with a pod's address in the outer header to a node, and see it dropped. It is sent by the host
    /// outside: a node would masquerade it.
    pub fn prove_guard(&self, to: &Node) -> anyhow::Result<()> {
        let before = self.dropped()?;
        let pod = super::objects::UNUSED_POD_ADDRESS;
        self.outside.ip(&format!("address add {pod}/32 dev lo"))?;
        let mut ping: Command = self.outside.command("ping");
        ping.args([
            "-c",
            "1",
            "-W",
            "1",
            "-I",
            &pod.to_string(),
            &to.address.to_string(),
        ]);
        let answered = crate::command::run(&mut ping)?.status.success();
        self.outside
            .ip(&format!("address delete {pod}/32 dev lo"))?;
        let dropped = self.dropped()? - before;
        anyhow::ensure!(
            !answered && dropped > 0,
            "the segment's guard let a frame with a pod's address pass"
        );
        Ok(())
    }
}
