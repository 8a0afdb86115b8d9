//! A link that nodes share, and its guard.
//!
//! The guard is a table of nftables' family bridge in the segment's own namespace. It counts what travels plainly and what is
//! encapsulated, between nodes on the segment and through its ports to elsewhere, and it drops what an underlay would that
//! has no routes to pods.

use anyhow::Context;
use ipnet::IpNet;

use crate::harness::command::{feed, output};
use crate::harness::run_dir::Run;
use crate::lab::cluster::families::Families;
use crate::lab::topology::namespace::Namespace;

/// Bytes of the largest packet. Not the usual 1500: nothing may rely on it.
pub const MTU: u32 = 1400;

/// What the guard has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Frames with a pod's address in the outer header, where there must be none: dropped.
    pub dropped: u64,
    /// Frames with a pod's address in the outer header, between nodes on the segment.
    pub plain: u64,
    /// Encapsulated frames between nodes on the segment.
    pub encapsulated_here: u64,
    /// Encapsulated frames from or to a port that leads elsewhere.
    pub encapsulated_there: u64,
}

/// A shared link.
pub struct Segment {
    space: Namespace,
}

impl Segment {
    /// A bridge in a namespace of its own.
    pub fn make(run: &mut Run) -> anyhow::Result<Self> {
        let segment = Self {
            space: Namespace::network(run)?,
        };
        segment
            .space
            .ip(&format!("link add segment mtu {MTU} type bridge"))?;
        segment.space.ip("link set segment up")?;
        Ok(segment)
    }

    /// Connect a namespace by a link called `name` there that has these addresses. Returns the port's name.
    pub fn attach(
        &self,
        space: &Namespace,
        name: &str,
        addresses: &[IpNet],
    ) -> anyhow::Result<String> {
        // A namespace has one link to a segment.
        let port = format!("p{}", space.pid());
        self.space.ip(&format!(
            "link add {port} mtu {MTU} type veth peer name {name} mtu {MTU} netns {}",
            space.pid()
        ))?;
        self.space
            .ip(&format!("link set {port} master segment up"))?;
        for net in addresses {
            space.ip(&address("add", *net, name))?;
        }
        space.ip(&format!("link set {name} up"))?;
        Ok(port)
    }

    /// Take a namespace's link away.
    pub fn detach(&self, space: &Namespace) -> anyhow::Result<()> {
        self.space
            .ip(&format!("link delete p{}", space.pid()))
            .map(drop)
    }

    /// Put up the guard. `elsewhere` are ports to what is no node; if `plain`, nodes may send to each other with pods' addresses
    /// in the outer header. `friends` may meet pods' addresses wherever they are.
    pub fn guard(
        &self,
        families: Families,
        elsewhere: &[String],
        plain: bool,
        friends: &[IpNet],
    ) -> anyhow::Result<()> {
        let elsewhere = elsewhere.join(", ");
        let dropped = |pods: IpNet| {
            let v4 = pods.addr().is_ipv4();
            let header = if v4 { "ip" } else { "ip6" };
            let friend = friends.iter().find(|net| net.addr().is_ipv4() == v4);
            let mut rules = String::new();
            for (field, other, port) in [
                ("saddr", "daddr", "iifname"),
                ("daddr", "saddr", "iifname"),
                ("saddr", "daddr", "oifname"),
                ("daddr", "saddr", "oifname"),
            ] {
                let but = friend.map(|net| format!("{header} {other} != {} ", net.addr()));
                let but = but.unwrap_or_default();
                let place = if plain {
                    format!("{port} {{ {elsewhere} }} ")
                } else {
                    String::new()
                };
                rules +=
                    &format!("{place}{header} {field} {pods} {but}counter name dropped drop\n");
            }
            if let Some(net) = friend {
                for field in ["saddr", "daddr"] {
                    rules += &format!("{header} {field} {} accept\n", net.addr());
                }
            }
            for field in ["saddr", "daddr"] {
                rules += &format!("{header} {field} {pods} counter name plain accept\n");
            }
            rules
        };
        let rules: String = families.pools().map(dropped).collect();
        let encapsulated: String = ["meta l4proto 4", "udp dport { 4789, 8285 }"]
            .iter()
            .map(|what| {
                format!(
                    "iifname {{ {elsewhere} }} {what} counter name there accept
                     oifname {{ {elsewhere} }} {what} counter name there accept
                     {what} counter name here accept\n"
                )
            })
            .collect();
        self.load(&(rules + &encapsulated))
    }

    /// Only count: every host may receive packets of pods.
    pub fn count(&self, families: Families) -> anyhow::Result<()> {
        let mut rules = String::new();
        for pods in families.pools() {
            let header = if pods.addr().is_ipv4() { "ip" } else { "ip6" };
            for field in ["saddr", "daddr"] {
                rules += &format!("{header} {field} {pods} counter name plain accept\n");
            }
        }
        // Any tunnel: IP and GRE in IP, VXLAN, Geneve, the relay.
        for tunnel in [
            "meta l4proto { 4, 41, 47 }",
            "udp dport { 4789, 6081, 8285 }",
        ] {
            rules += &format!("{tunnel} counter name here accept\n");
        }
        self.load(&rules)
    }

    /// Nothing passes from or to this namespace any more, while its link stays up.
    pub fn part(&self, space: &Namespace) -> anyhow::Result<()> {
        self.space
            .ip(&format!("link set p{} nomaster", space.pid()))
            .map(drop)
    }

    /// The guard's table with these rules.
    fn load(&self, rules: &str) -> anyhow::Result<()> {
        // Before br_netfilter, where that is loaded: what it takes up at 0 does not come back to chains of that priority.
        let table = format!(
            "table bridge guard {{
                counter dropped {{ }}
                counter plain {{ }}
                counter here {{ }}
                counter there {{ }}
                chain forward {{
                    type filter hook forward priority -200;
                    {rules}
                }}
            }}"
        );
        feed(self.space.command("nft").args(["-f", "-"]), &table)
    }

    /// What the guard has seen until now.
    pub fn seen(&self) -> anyhow::Result<Seen> {
        let json = output(
            self.space
                .command("nft")
                .args(["-j", "list", "counters", "table", "bridge", "guard"]),
        )?;
        let value: serde_json::Value = serde_json::from_str(&json)?;
        let entries = value.pointer("/nftables").and_then(|list| list.as_array());
        let count = |name: &str| {
            let mut counters = entries.into_iter().flatten();
            let counter = counters.find(|entry| {
                entry
                    .pointer("/counter/name")
                    .and_then(|name| name.as_str())
                    == Some(name)
            });
            let packets = counter.and_then(|entry| entry.pointer("/counter/packets")?.as_u64());
            packets.with_context(|| format!("nft did not tell the guard's counter {name}"))
        };
        Ok(Seen {
            dropped: count("dropped")?,
            plain: count("plain")?,
            encapsulated_here: count("here")?,
            encapsulated_there: count("there")?,
        })
    }
}

/// The words that give a link an address, or take it away.
pub fn address(verb: &str, net: IpNet, link: &str) -> String {
    // No other host has the address, so duplicate address detection would only cost a second.
    let nodad = if net.addr().is_ipv6() && verb == "add" {
        " nodad"
    } else {
        ""
    };
    format!("address {verb} {net} dev {link}{nodad}")
}
