//! A fabric of two racks with one router each, and two spines that connect them.
//!
//! ```text
//!      spine-1  AS 64600      spine-2  AS 64600
//!         │    ╲             ╱    │
//!         │      ╲─────────╱─     │          wires: networks of two addresses
//!         │      ╱         ╲      │
//!      tor-1  AS 64601        tor-2  AS 64602
//!    ══════╤══════════      ══════╤══════════   racks: 192.0.2.0/24 and 198.51.100.0/24
//!   node-1 node-2           node-3 node-4
//!   AS 64601, inside        AS 64603, 64604: every node a neighbour AS
//! ```
//!
//! The nodes of a rack have sessions with the router, or with a separate reflector. Every wire is a bridge, so that it can be cut in the
//! middle: both ends keep their carrier, and only BFD detects the failure.

pub mod router;
mod speaker;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, ensure};
use ipnet::IpNet;
use netweft_crds::IpFamily;

use crate::harness::run_dir::Run;
use crate::lab::cluster::families::Families;
use crate::lab::node::Node;
use crate::lab::topology::fabric::router::{Program, Router, Routers};
use crate::lab::topology::fabric::speaker::{Neighbour, Role, Speaker};
use crate::lab::topology::segment::{FrameCounts, Segment};
use crate::lab::topology::underlay::{Subnet, addresses, default_route};

/// AS number of both spines.
const SPINE_AS: u32 = 64_600;
/// Host number of a rack's router.
const TOR: u8 = 254;
/// Host number of a rack's reflector.
const REFLECTOR: u8 = 253;

/// The parameters of a rack.
#[derive(Clone, Copy)]
pub struct Rack {
    /// 1 or 2.
    pub number: u8,
    /// The network.
    pub subnet: Subnet,
    /// AS number of the router.
    pub tor_as: u32,
    /// AS number of the reflector, in fabrics with reflectors.
    pub reflector_as: u32,
    /// The nodes: number, uplink and AS number.
    pub nodes: [(u8, &'static str, u32); 2],
}

/// Both racks. The names of all uplinks differ.
pub const RACKS: [Rack; 2] = [
    Rack {
        number: 1,
        subnet: Subnet::Near,
        tor_as: 64_601,
        reflector_as: 64_601,
        nodes: [(1, "eth0", 64_601), (2, "ens5", 64_601)],
    },
    Rack {
        number: 2,
        subnet: Subnet::Far,
        tor_as: 64_602,
        reflector_as: 64_699,
        nodes: [(3, "enp3s0", 64_603), (4, "eno1", 64_604)],
    },
];

impl Rack {
    /// Addresses and AS number of the BGP peer of the rack's nodes.
    pub fn peers(&self, routers: Routers, families: Families) -> Vec<(IpAddr, u32)> {
        let (host, as_number) = match routers {
            Routers::Gobgp => (REFLECTOR, self.reflector_as),
            Routers::Frr | Routers::Bird => (TOR, self.tor_as),
        };
        let nets = addresses(families, self.subnet, host).into_iter();
        nets.map(|net| (net.addr(), as_number)).collect()
    }
}

/// The fabric.
pub struct Fabric {
    families: Families,
    routers: Vec<Router>,
    racks: Vec<Segment>,
    wires: Vec<Wire>,
}

/// The link between a rack's router and a spine.
struct Wire {
    segment: Segment,
    tor: usize,
}

/// The addresses of both ends of a wire: first of the rack, then of the spine.
fn wire_addresses(families: Families, number: u8) -> Vec<[IpNet; 2]> {
    let v4 = |end: u8| IpAddr::V4(Ipv4Addr::new(203, 0, 113, 4 * number + end));
    let v6 = |end: u8| {
        let wire = 0xf0 + u16::from(number);
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, wire, 0, 0, 0, end.into()))
    };
    let net = |address: IpAddr| IpNet::new_assert(address, if address.is_ipv4() { 30 } else { 64 });
    let ends = [[v4(1), v4(2)], [v6(1), v6(2)]].into_iter();
    let ends = ends.filter(|[one, _]| families.has(*one));
    ends.map(|ends| ends.map(net)).collect()
}

impl Fabric {
    /// Creates racks and wires, and starts the routers. `root` is the folder that e2e/routers/root.sh prints.
    pub fn create(
        run: &mut Run,
        root: &Path,
        routers: Routers,
        families: Families,
    ) -> anyhow::Result<Self> {
        let mut fabric = Self {
            families,
            routers: Vec::new(),
            racks: Vec::new(),
            wires: Vec::new(),
        };
        for name in ["tor-1", "tor-2", "spine-1", "spine-2"] {
            fabric.routers.push(Router::create(run, name, root)?);
        }
        for rack in &RACKS {
            fabric.create_rack(run, rack)?;
        }
        for (number, (tor, spine)) in (0..).zip([(0, 2), (0, 3), (1, 2), (1, 3)]) {
            fabric.create_wire(run, number, tor, spine)?;
        }
        fabric.start(run, root, routers)?;
        Ok(fabric)
    }

    fn create_rack(&mut self, run: &mut Run, rack: &Rack) -> anyhow::Result<()> {
        let segment = Segment::create(run)?;
        let tor = &self.router(usize::from(rack.number) - 1)?.namespace;
        segment.attach(tor, "rack", &addresses(self.families, rack.subnet, TOR))?;
        segment.guard_without_drops(self.families)?;
        self.racks.push(segment);
        Ok(())
    }

    fn create_wire(
        &mut self,
        run: &mut Run,
        number: u8,
        tor: usize,
        spine: usize,
    ) -> anyhow::Result<()> {
        let segment = Segment::create(run)?;
        let ends = wire_addresses(self.families, number);
        for (router, end) in [(tor, 0), (spine, 1)] {
            let nets: Vec<IpNet> = ends
                .iter()
                .filter_map(|ends| ends.get(end))
                .copied()
                .collect();
            let link = format!("wire{number}");
            segment.attach(&self.router(router)?.namespace, &link, &nets)?;
        }
        segment.guard_without_drops(self.families)?;
        self.wires.push(Wire { segment, tor });
        Ok(())
    }

    fn router(&self, at: usize) -> anyhow::Result<&Router> {
        self.routers
            .get(at)
            .context("the fabric has no router with this index")
    }

    fn start(&self, run: &mut Run, root: &Path, routers: Routers) -> anyhow::Result<()> {
        let program = routers.program();
        for (at, rack) in RACKS.iter().enumerate() {
            let mut neighbours = self.wire_neighbours(rack.number, false);
            if routers == Routers::Gobgp {
                self.start_reflector(run, root, rack)?;
                for net in addresses(self.families, rack.subnet, REFLECTOR) {
                    neighbours.push(neighbour(net, rack.reflector_as, Role::Reflector));
                }
            } else {
                neighbours.extend(self.nodes(rack));
            }
            let id = Ipv4Addr::new(10, 0, 0, rack.number);
            let speaker = self.speaker(rack.tor_as, id, neighbours);
            self.router(at)?.start(run, program, &speaker)?;
        }
        for number in [1, 2] {
            let id = Ipv4Addr::new(10, 0, 1, number);
            let speaker = self.speaker(SPINE_AS, id, self.wire_neighbours(number, true));
            let at = 1 + usize::from(number);
            self.router(at)?.start(run, program, &speaker)?;
        }
        Ok(())
    }

    /// The neighbours of a router at the other ends of its wires.
    fn wire_neighbours(&self, number: u8, spine: bool) -> Vec<Neighbour> {
        let mut neighbours = Vec::new();
        let wires = if spine {
            [number - 1, number + 1]
        } else {
            [2 * number - 2, 2 * number - 1]
        };
        for (other, wire) in (1u32..).zip(wires) {
            let as_number = if spine { SPINE_AS + other } else { SPINE_AS };
            for [tor_end, spine_end] in wire_addresses(self.families, wire) {
                let address = if spine { tor_end } else { spine_end };
                let with_bfd = Neighbour {
                    bfd: true,
                    ..neighbour(address, as_number, Role::Router)
                };
                neighbours.push(with_bfd);
            }
        }
        neighbours
    }

    fn nodes(&self, rack: &Rack) -> Vec<Neighbour> {
        let mut neighbours = Vec::new();
        for (number, _, as_number) in rack.nodes {
            for net in addresses(self.families, rack.subnet, number) {
                neighbours.push(neighbour(net, as_number, Role::Node));
            }
        }
        neighbours
    }

    fn start_reflector(&self, run: &mut Run, root: &Path, rack: &Rack) -> anyhow::Result<()> {
        let reflector = Router::create(run, &format!("reflector-{}", rack.number), root)?;
        let nets = addresses(self.families, rack.subnet, REFLECTOR);
        let at = usize::from(rack.number) - 1;
        let segment = self
            .racks
            .get(at)
            .context("the fabric has no segment of the rack")?;
        segment.attach(&reflector.namespace, "rack", &nets)?;
        let mut neighbours = self.nodes(rack);
        for net in addresses(self.families, rack.subnet, TOR) {
            neighbours.push(neighbour(net, rack.tor_as, Role::Router));
        }
        let id = Ipv4Addr::new(10, 0, 2, rack.number);
        let speaker = self.speaker(rack.reflector_as, id, neighbours);
        reflector.start(run, Program::Gobgp, &speaker)
    }

    fn speaker(&self, as_number: u32, id: Ipv4Addr, neighbours: Vec<Neighbour>) -> Speaker {
        Speaker {
            as_number,
            id,
            pods: self.families.pools().collect(),
            neighbours,
        }
    }

    /// Checks that both ends of every wire have a BFD session in each family. `routers` is the value that the fabric was created with.
    pub fn check_bfd_sessions(&self, routers: Routers) -> anyhow::Result<()> {
        let expected = 2 * self.families.pools().count();
        for router in &self.routers {
            let sessions = router.bfd_sessions(routers.program())?;
            ensure!(
                sessions == expected,
                "{} has {sessions} of {expected} BFD sessions",
                router.name
            );
        }
        Ok(())
    }

    /// Connects a node to its rack.
    pub fn connect(
        &self,
        node: &mut Node,
        rack: &Rack,
        number: u8,
        uplink: &str,
    ) -> anyhow::Result<()> {
        let nets = addresses(self.families, rack.subnet, number);
        let segment = self.racks.get(usize::from(rack.number) - 1);
        let segment = segment.context("the fabric has no segment of the rack")?;
        segment.attach(&node.namespace, uplink, &nets)?;
        for gateway in addresses(self.families, rack.subnet, TOR) {
            node.namespace.ip(&default_route(gateway, uplink))?;
        }
        node.addresses = nets.iter().map(IpNet::addr).collect();
        Ok(())
    }

    /// The sum of the counters of all links.
    pub fn frame_counts(&self) -> anyhow::Result<FrameCounts> {
        let wires = self.wires.iter().map(|wire| &wire.segment);
        let mut sum = FrameCounts::default();
        for segment in wires.chain(&self.racks) {
            let counts = segment.frame_counts()?;
            sum.unencapsulated += counts.unencapsulated;
            sum.encapsulated_on_link += counts.encapsulated_on_link;
        }
        Ok(sum)
    }

    /// Numbers of the first rack's wires that have carried pods' packets since `before`, a result of [`Fabric::unencapsulated_on_wires`].
    pub fn busy_uplinks(&self, before: &[u64]) -> anyhow::Result<Vec<usize>> {
        let now = self.unencapsulated_on_wires()?;
        let busy = now
            .iter()
            .zip(before)
            .enumerate()
            .filter(|(at, (now, before))| {
                *now > *before && self.wires.get(*at).is_some_and(|wire| wire.tor == 0)
            });
        Ok(busy.map(|(at, _)| at).collect())
    }

    /// The number of frames with a pod's address on each wire.
    pub fn unencapsulated_on_wires(&self) -> anyhow::Result<Vec<u64>> {
        let counts = self.wires.iter().map(|wire| wire.segment.frame_counts());
        counts.map(|counts| Ok(counts?.unencapsulated)).collect()
    }

    /// Cuts a wire in the middle.
    pub fn cut(&self, wire: usize) -> anyhow::Result<()> {
        let wire = self
            .wires
            .get(wire)
            .context("the fabric has no wire with this number")?;
        wire.segment.isolate(&self.router(wire.tor)?.namespace)
    }

    /// The kernel routes of all routers, for messages of a failure.
    pub fn routes(&self) -> String {
        let families = [IpFamily::Ipv4, IpFamily::Ipv6];
        let sample = |family: &IpFamily| match family {
            IpFamily::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpFamily::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let samples = families
            .iter()
            .map(sample)
            .filter(|ip| self.families.has(*ip));
        samples
            .flat_map(|like| self.routers.iter().map(move |router| router.routes(like)))
            .collect()
    }
}

fn neighbour(net: IpNet, as_number: u32, role: Role) -> Neighbour {
    Neighbour {
        address: net.addr(),
        as_number,
        role,
        bfd: false,
    }
}
