//! What a router is to speak, and the same in the words of each program.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// A BGP speaker that is not ours.
pub struct Speaker {
    /// Its AS number.
    pub as_number: u32,
    /// Its identifier.
    pub id: Ipv4Addr,
    /// The ranges of pods: all prefixes that are announced to a node.
    pub pods: Vec<IpNet>,
    /// The peers.
    pub neighbours: Vec<Neighbour>,
}

/// A neighbour on the same link.
#[derive(Clone, Copy)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its AS number.
    pub as_number: u32,
    /// The prefixes that are announced to it.
    pub role: Role,
    /// Whether it is watched by BFD.
    pub bfd: bool,
}

/// The prefixes that are announced to a neighbour.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Router,
    /// The pods' blocks; inside one AS they are reflected to it.
    Node,
    /// The pods' blocks, and it is who reflects them.
    Reflector,
}

/// Milliseconds between packets of BFD; three missing ones end a session. That is what routers are usually set to, and long enough for
/// a busy machine not to miss its own packets.
pub const BFD_INTERVAL: u32 = 300;

impl Speaker {
    fn inside(&self, neighbour: &Neighbour) -> bool {
        neighbour.as_number == self.as_number
    }

    fn of_family(&self, v4: bool) -> impl Iterator<Item = &Neighbour> {
        let all = self.neighbours.iter();
        all.filter(move |neighbour| neighbour.address.is_ipv4() == v4)
    }

    fn pods(&self, v4: bool) -> Option<IpNet> {
        let mut pods = self.pods.iter().copied();
        pods.find(|pods| pods.addr().is_ipv4() == v4)
    }

    /// `bird.conf` of BIRD 2.
    pub fn bird(&self) -> String {
        let Self { as_number, id, .. } = self;
        let mut text = format!(
            "log stderr all;
router id {id};
protocol device {{ scan time 2; }}
protocol direct {{ ipv4; ipv6; }}
protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}
protocol kernel {{ ipv6 {{ import none; export where source = RTS_BGP; }}; }}
protocol bfd {{ interface \"*\" {{ interval {BFD_INTERVAL} ms; multiplier 3; }}; }}
"
        );
        for (n, neighbour) in self.neighbours.iter().enumerate() {
            let v4 = neighbour.address.is_ipv4();
            let export = match (neighbour.role, self.pods(v4)) {
                (Role::Node | Role::Reflector, Some(pods)) => format!("where net ~ [ {pods}+ ]"),
                (Role::Node | Role::Reflector, None) => "none".to_owned(),
                (Role::Router, _) => "where source ~ [ RTS_BGP, RTS_DEVICE ]".to_owned(),
            };
            let reflect = self.inside(neighbour) && neighbour.role == Role::Node;
            text += &format!(
                "protocol bgp n{n} {{
  local as {as_number};
  neighbor {} as {};
  direct;{}{}
  hold time 90; connect delay time 1; connect retry time 1; error wait time 1, 2;
  {} {{ import all; export {export}; next hop self ebgp; }};
}}
",
                neighbour.address,
                neighbour.as_number,
                if reflect { " rr client;" } else { "" },
                if neighbour.bfd { " bfd on;" } else { "" },
                if v4 { "ipv4" } else { "ipv6" },
            );
        }
        text
    }

    /// `bgpd.conf` of FRR.
    pub fn frr_bgpd(&self) -> String {
        let Self { as_number, id, .. } = self;
        let mut text = format!(
            "frr defaults datacenter
log stdout
router bgp {as_number}
 bgp router-id {id}
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 timers bgp 30 90
"
        );
        for neighbour in &self.neighbours {
            let address = neighbour.address;
            text += &format!(" neighbor {address} remote-as {}\n", neighbour.as_number);
            text += &format!(" neighbor {address} timers connect 1\n");
            if neighbour.bfd {
                text += &format!(" neighbor {address} bfd profile fast\n");
            }
        }
        for v4 in [true, false] {
            text += &self.frr_family(v4);
        }
        for (v4, word) in [(true, "ip"), (false, "ipv6")] {
            if let Some(pods) = self.pods(v4) {
                let longest = if v4 { 32 } else { 128 };
                text += &format!("{word} prefix-list PODS permit {pods} le {longest}\n");
            }
        }
        text
    }

    fn frr_family(&self, v4: bool) -> String {
        let family = if v4 { "ipv4" } else { "ipv6" };
        let mut text = format!(" address-family {family} unicast\n  redistribute connected\n");
        for neighbour in self.of_family(v4) {
            let address = neighbour.address;
            let mut say = |what: &str| {
                text += &format!("  neighbor {address} {what}\n");
            };
            say("activate");
            match neighbour.role {
                Role::Router => {}
                Role::Node | Role::Reflector => say("prefix-list PODS out"),
            }
            if self.inside(neighbour) {
                say("next-hop-self");
                if neighbour.role == Role::Node {
                    say("route-reflector-client");
                }
            }
        }
        text + " exit-address-family\n"
    }

    /// `bfdd.conf` of FRR.
    pub fn frr_bfdd() -> String {
        format!(
            "log stdout
bfd
 profile fast
  transmit-interval {BFD_INTERVAL}
  receive-interval {BFD_INTERVAL}
  detect-multiplier 3
"
        )
    }

    /// `gobgpd.conf` of GoBGP, for one that only reflects: to a neighbour of its own AS as a reflector (RFC 4456), to those of others
    /// as a route server (RFC 7947). It changes no next hop.
    pub fn gobgp(&self) -> String {
        let Self { as_number, id, .. } = self;
        let mut text = format!("[global.config]\nas = {as_number}\nrouter-id = \"{id}\"\n");
        for neighbour in &self.neighbours {
            let family = if neighbour.address.is_ipv4() {
                "ipv4"
            } else {
                "ipv6"
            };
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "[[neighbors]]
[neighbors.config]
neighbor-address = \"{}\"
peer-as = {}
[neighbors.timers.config]
hold-time = 90
keepalive-interval = 30
connect-retry = 1
[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = \"{family}-unicast\"
",
                neighbour.address, neighbour.as_number
            );
            text += &if self.inside(neighbour) {
                format!(
                    "[neighbors.route-reflector.config]
route-reflector-client = true
route-reflector-cluster-id = \"{id}\"
"
                )
            } else {
                "[neighbors.route-server.config]\nroute-server-client = true\n".to_owned()
            };
        }
        text
    }
}
