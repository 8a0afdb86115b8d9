//! A shared link between nodes, and its guard.
//!
//! The guard is an nftables table of family bridge in the namespace of the segment. It counts encapsulated and unencapsulated frames
//! between nodes on the segment and through external ports. It drops frames that an underlay without routes to pods would drop.

use anyhow::Context;
use ipnet::IpNet;

use crate::harness::command::output;
use crate::harness::run_dir::Run;
use crate::lab::cluster::families::Families;
use crate::lab::topology::namespace::Namespace;
use crate::lab::topology::nft;

/// MTU of the segment in bytes. It differs from the usual 1500, because netweft must not depend on that value.
pub const MTU: u32 = 1400;

/// The counters of the guard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Dropped frames: those with a pod's address in the outer header that are not allowed.
    pub dropped: u64,
    /// Frames with a pod's address in the outer header, between nodes on the segment.
    pub unencapsulated: u64,
    /// Encapsulated frames between nodes on the segment.
    pub encapsulated_on_link: u64,
    /// Encapsulated frames from or to an external port.
    pub encapsulated_external: u64,
}

/// A shared link.
pub struct Segment {
    namespace: Namespace,
}

impl Segment {
    /// Creates a bridge in a new namespace.
    pub fn create(run: &mut Run) -> anyhow::Result<Self> {
        let segment = Self {
            namespace: Namespace::network(run)?,
        };
        segment
            .namespace
            .ip(&format!("link add segment mtu {MTU} type bridge"))?;
        segment.namespace.ip("link set segment up")?;
        Ok(segment)
    }

    /// Connects a namespace by a link with this name and these addresses. Returns the name of the bridge port.
    pub fn attach(
        &self,
        namespace: &Namespace,
        name: &str,
        addresses: &[IpNet],
    ) -> anyhow::Result<String> {
        // Unique, because a namespace has only one link to a segment.
        let port = format!("p{}", namespace.pid());
        self.namespace.ip(&format!(
            "link add {port} mtu {MTU} type veth peer name {name} mtu {MTU} netns {}",
            namespace.pid()
        ))?;
        self.namespace
            .ip(&format!("link set {port} master segment up"))?;
        for net in addresses {
            namespace.ip(&address_command("add", *net, name))?;
        }
        namespace.ip(&format!("link set {name} up"))?;
        Ok(port)
    }

    /// Deletes the link of a namespace.
    pub fn detach(&self, namespace: &Namespace) -> anyhow::Result<()> {
        self.namespace
            .ip(&format!("link delete p{}", namespace.pid()))
            .map(drop)
    }

    /// Creates the guard. `external_ports` are the ports to routers and external hosts. With `allow_unencapsulated`, nodes may exchange
    /// frames with pods' addresses in the outer header. Frames from and to `exempt` addresses may have pods' addresses on all ports.
    pub fn guard(
        &self,
        families: Families,
        external_ports: &[String],
        allow_unencapsulated: bool,
        exempt: &[IpNet],
    ) -> anyhow::Result<()> {
        let external_ports = external_ports.join(", ");
        let dropped = |pods: IpNet| {
            let v4 = pods.addr().is_ipv4();
            let header = if v4 { "ip" } else { "ip6" };
            let exempt = exempt.iter().find(|net| net.addr().is_ipv4() == v4);
            let mut rules = String::new();
            for (field, other_field, port) in [
                ("saddr", "daddr", "iifname"),
                ("daddr", "saddr", "iifname"),
                ("saddr", "daddr", "oifname"),
                ("daddr", "saddr", "oifname"),
            ] {
                let exception =
                    exempt.map(|net| format!("{header} {other_field} != {} ", net.addr()));
                let exception = exception.unwrap_or_default();
                let place = if allow_unencapsulated {
                    format!("{port} {{ {external_ports} }} ")
                } else {
                    String::new()
                };
                rules += &format!(
                    "{place}{header} {field} {pods} {exception}counter name dropped drop\n"
                );
            }
            if let Some(net) = exempt {
                for field in ["saddr", "daddr"] {
                    rules += &format!("{header} {field} {} accept\n", net.addr());
                }
            }
            for field in ["saddr", "daddr"] {
                rules += &format!("{header} {field} {pods} counter name unencapsulated accept\n");
            }
            rules
        };
        let rules: String = families.pools().map(dropped).collect();
        let encapsulated: String = ["meta l4proto 4", "udp dport { 4789, 8285 }"]
            .iter()
            .map(|what| {
                format!(
                    "iifname {{ {external_ports} }} {what} counter name encapsulated_external accept
                     oifname {{ {external_ports} }} {what} counter name encapsulated_external accept
                     {what} counter name encapsulated_on_link accept\n"
                )
            })
            .collect();
        self.load(&(rules + &encapsulated))
    }

    /// Creates a guard that only counts, for underlays with routes to pods.
    pub fn guard_without_drops(&self, families: Families) -> anyhow::Result<()> {
        let mut rules = String::new();
        for pods in families.pools() {
            let header = if pods.addr().is_ipv4() { "ip" } else { "ip6" };
            for field in ["saddr", "daddr"] {
                rules += &format!("{header} {field} {pods} counter name unencapsulated accept\n");
            }
        }
        // All tunnels: IP and GRE in IP, VXLAN, Geneve, the relay.
        for tunnel in [
            "meta l4proto { 4, 41, 47 }",
            "udp dport { 4789, 6081, 8285 }",
        ] {
            rules += &format!("{tunnel} counter name encapsulated_on_link accept\n");
        }
        self.load(&rules)
    }

    /// Removes the port of a namespace from the bridge: no frame passes any more, and the link keeps its carrier.
    pub fn isolate(&self, namespace: &Namespace) -> anyhow::Result<()> {
        self.namespace
            .ip(&format!("link set p{} nomaster", namespace.pid()))
            .map(drop)
    }

    /// Creates the guard's table with these rules.
    fn load(&self, rules: &str) -> anyhow::Result<()> {
        // The priority is before br_netfilter (0): the frames that it takes over do not return to chains of its priority.
        let table = format!(
            "table bridge guard {{
                counter dropped {{ }}
                counter unencapsulated {{ }}
                counter encapsulated_on_link {{ }}
                counter encapsulated_external {{ }}
                chain forward {{
                    type filter hook forward priority -200;
                    {rules}
                }}
            }}"
        );
        nft::run_script(&self.namespace, &table)
    }

    /// The current counters of the guard.
    pub fn frame_counts(&self) -> anyhow::Result<FrameCounts> {
        let json = output(
            self.namespace
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
            packets.with_context(|| format!("the output of nft has no counter {name}"))
        };
        Ok(FrameCounts {
            dropped: count("dropped")?,
            unencapsulated: count("unencapsulated")?,
            encapsulated_on_link: count("encapsulated_on_link")?,
            encapsulated_external: count("encapsulated_external")?,
        })
    }
}

/// Arguments of `ip` that add or delete an address, by `verb`.
pub fn address_command(verb: &str, net: IpNet, link: &str) -> String {
    // Addresses are unique in the lab, and duplicate address detection takes a second.
    let nodad = if net.addr().is_ipv6() && verb == "add" {
        " nodad"
    } else {
        ""
    };
    format!("address {verb} {net} dev {link}{nodad}")
}
