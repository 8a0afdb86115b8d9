//! The BGP configuration of a router, rendered for each program.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// The configuration of a foreign speaker.
pub struct Speaker {
    /// The AS number.
    pub as_number: u32,
    /// The router ID.
    pub id: Ipv4Addr,
    /// The CIDRs of pods. The speaker announces only their prefixes to nodes.
    pub pods: Vec<IpNet>,
    /// The neighbours.
    pub neighbours: Vec<Neighbour>,
}

/// A neighbour on the same link.
#[derive(Clone, Copy)]
pub struct Neighbour {
    /// The address.
    pub address: IpAddr,
    /// The AS number.
    pub as_number: u32,
    /// The role, which selects the export policy.
    pub role: Role,
    /// Whether the session uses BFD.
    pub bfd: bool,
}

/// The role of a neighbour, which selects the export policy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A router, which receives all routes.
    Router,
    /// A node, which receives the blocks of pods. Within the same AS it is a client of the reflector.
    Node,
    /// A route reflector, which receives the blocks of pods and reflects them.
    Reflector,
}

/// Milliseconds between BFD packets; a session ends after three missing packets. This is a usual setting of routers, and long enough that
/// a busy machine does not miss packets.
pub const BFD_INTERVAL: u32 = 300;

impl Speaker {
    fn is_internal(&self, neighbour: &Neighbour) -> bool {
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
            let reflect = self.is_internal(neighbour) && neighbour.role == Role::Node;
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
        for (v4, keyword) in [(true, "ip"), (false, "ipv6")] {
            if let Some(pods) = self.pods(v4) {
                let longest = if v4 { 32 } else { 128 };
                text += &format!("{keyword} prefix-list PODS permit {pods} le {longest}\n");
            }
        }
        text
    }

    fn frr_family(&self, v4: bool) -> String {
        let family = if v4 { "ipv4" } else { "ipv6" };
        let mut text = format!(" address-family {family} unicast\n  redistribute connected\n");
        for neighbour in self.of_family(v4) {
            let address = neighbour.address;
            let mut add = |statement: &str| {
                text += &format!("  neighbor {address} {statement}\n");
            };
            add("activate");
            match neighbour.role {
                Role::Router => {}
                Role::Node | Role::Reflector => add("prefix-list PODS out"),
            }
            if self.is_internal(neighbour) {
                add("next-hop-self");
                if neighbour.role == Role::Node {
                    add("route-reflector-client");
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

    /// `gobgpd.conf` of GoBGP, which serves neighbours of the same AS as route reflector (RFC 4456) and neighbours of other ASes as route
    /// server (RFC 7947). It does not change next hops.
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
            text += &if self.is_internal(neighbour) {
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
