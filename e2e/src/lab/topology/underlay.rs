//! The underlay between nodes: one segment, or two segments connected by a router, and an external host.
//!
//! ```text
//!   one subnet     nodes ══════ external host
//!   two subnets    nodes 1 and 2 ══╤══ external host
//!                                router
//!                  node 3 ═════════╧══
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;

use crate::harness::poll::until;
use crate::harness::run_dir::Run;
use crate::lab::cluster::families::Families;
use crate::lab::cluster::modes::LabMode;
use crate::lab::cluster::objects;
use crate::lab::node::Node;
use crate::lab::topology::namespace::Namespace;
use crate::lab::topology::segment::{FrameCounts, Segment};

/// Host number of the external host.
const EXTERNAL_HOST: u8 = 200;
/// Host number of the router on each segment.
const ROUTER: u8 = 254;
/// The MAC address of two nodes on different segments.
const SHARED_MAC: &str = "02:00:00:00:00:99";
/// Port of the external host's server.
const PORT: u16 = 8080;
/// Limit until the guard counts a frame.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A segment of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subnet {
    /// The first or only segment.
    Near,
    /// The segment behind the router.
    Far,
}

/// The addresses of a host in a subnet, with the prefix length of the subnet. They are from the documentation ranges (RFC 5737,
/// RFC 3849).
pub fn addresses(families: Families, subnet: Subnet, number: u8) -> Vec<IpNet> {
    let (v4, v6) = match subnet {
        Subnet::Near => ([192, 0, 2], 0),
        Subnet::Far => ([198, 51, 100], 1),
    };
    let [a, b, c] = v4;
    let v4 = IpAddr::V4(Ipv4Addr::new(a, b, c, number));
    let v6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, v6, 0, 0, 0, number.into()));
    [IpNet::new_assert(v4, 24), IpNet::new_assert(v6, 64)]
        .into_iter()
        .filter(|net| families.has(net.addr()))
        .collect()
}

/// The network between the nodes.
pub struct Underlay {
    near: Segment,
    far: Option<Segment>,
    external_host: Namespace,
    router: Option<Namespace>,
    families: Families,
    mode: LabMode,
}

impl Underlay {
    /// Creates segments with guards, the router between two segments, and the external host. Without masquerading, frames from and to the
    /// external host may have pods' addresses.
    pub fn create(
        run: &mut Run,
        mode: LabMode,
        families: Families,
        masquerading: bool,
    ) -> anyhow::Result<Self> {
        let near = Segment::create(run)?;
        let external_host = Namespace::network(run)?;
        let external = addresses(families, Subnet::Near, EXTERNAL_HOST);
        let mut external_ports = vec![near.attach(&external_host, "host0", &external)?];
        let allow_unencapsulated = mode.sends_unencapsulated_on_link();
        let exempt = if masquerading { &[][..] } else { &external };
        let (mut far, mut far_router) = (None, None);
        if mode.crosses_subnets() {
            let segment = Segment::create(run)?;
            let (router, [port, far_port]) = router(run, families, &near, &segment)?;
            external_ports.push(port);
            segment.guard(families, &[far_port], allow_unencapsulated, exempt)?;
            for net in addresses(families, Subnet::Near, ROUTER) {
                external_host.ip(&default_route(net, "host0"))?;
            }
            (far, far_router) = (Some(segment), Some(router));
        }
        near.guard(families, &external_ports, allow_unencapsulated, exempt)?;
        Ok(Self {
            near,
            far,
            external_host,
            router: far_router,
            families,
            mode,
        })
    }

    /// The initial subnet of the node with this number.
    pub fn subnet_of(&self, number: u8) -> Subnet {
        if self.far.is_some() && number == 3 {
            Subnet::Far
        } else {
            Subnet::Near
        }
    }

    /// Connects a node and adds default routes. Like on real nodes, packets without another route leave the node, and the guard sees them.
    pub fn connect(
        &self,
        node: &mut Node,
        uplink: &str,
        subnet: Subnet,
        number: u8,
    ) -> anyhow::Result<()> {
        let nets = addresses(self.families, subnet, number);
        self.segment(subnet)?
            .attach(&node.namespace, uplink, &nets)?;
        if self.far.is_some() && self.subnet_of(number) == subnet && [1, 3].contains(&number) {
            // Nodes on different segments can have the same MAC address, so netweft must not derive identifiers from it. All nodes of the
            // lab also share the machine-id.
            let set_mac = format!("link set {uplink} address {SHARED_MAC}");
            node.namespace.ip(&set_mac)?;
        }
        node.addresses = nets.iter().map(IpNet::addr).collect();
        self.add_default_routes(node, uplink, subnet)
    }

    /// Adds the default routes of a node.
    pub fn add_default_routes(
        &self,
        node: &Node,
        uplink: &str,
        subnet: Subnet,
    ) -> anyhow::Result<()> {
        let router = if self.far.is_some() {
            ROUTER
        } else {
            EXTERNAL_HOST
        };
        for gateway in addresses(self.families, subnet, router) {
            node.namespace.ip(&default_route(gateway, uplink))?;
        }
        Ok(())
    }

    /// Deletes the uplink of a node.
    pub fn disconnect(&self, node: &Node, subnet: Subnet) -> anyhow::Result<()> {
        self.segment(subnet)?.detach(&node.namespace)
    }

    fn segment(&self, subnet: Subnet) -> anyhow::Result<&Segment> {
        match subnet {
            Subnet::Near => Ok(&self.near),
            Subnet::Far => self
                .far
                .as_ref()
                .context("the underlay has no second segment"),
        }
    }

    /// The external host.
    pub fn external_host(&self) -> &Namespace {
        &self.external_host
    }

    /// The server addresses of the external host, one for each family.
    pub fn servers(&self) -> impl Iterator<Item = SocketAddr> {
        let nets = addresses(self.families, Subnet::Near, EXTERNAL_HOST).into_iter();
        nets.map(|net| SocketAddr::new(net.addr(), PORT))
    }

    /// Starts the server of the external host.
    pub fn start_server(&self, run: &mut Run, binaries: &Path) -> anyhow::Result<()> {
        let mut command = self.external_host.command(binaries.join("netweft-probe"));
        command.args(["serve", "--port", &PORT.to_string()]);
        let log = run.folder().join("external-host.log");
        self.external_host.start(run, &mut command, &log)?;
        for server in self.servers() {
            let request = || self.external_host.ask(binaries, "tcp", server, 0);
            until("the external server", Duration::from_secs(5), request)?;
        }
        Ok(())
    }

    /// Adds a route to a pod via its node, on the external host and on the router between segments.
    pub fn add_external_pod_route(&self, pod: IpAddr, node: IpAddr) -> anyhow::Result<()> {
        let on_link = |subnet| {
            let nets = addresses(self.families, subnet, EXTERNAL_HOST);
            nets.iter().any(|net| net.contains(&node))
        };
        if let Some(router) = &self.router {
            router.ip(&format!("route replace {pod} via {node}"))?;
        }
        let next = if on_link(Subnet::Near) {
            node
        } else {
            let routers = addresses(self.families, Subnet::Near, ROUTER).into_iter();
            let mut routers = routers.map(|net| net.addr());
            let router = routers.find(|router| router.is_ipv4() == node.is_ipv4());
            router.context("the router has no address of the family")?
        };
        let route = format!("route replace {pod} via {next} dev host0");
        self.external_host.ip(&route).map(drop)
    }

    /// Checks the counters of the guards against the mode.
    ///
    /// # Errors
    /// A guard counted frames that the mode does not send, or no frames that it sends, or nft cannot be run.
    pub fn check_paths(&self) -> anyhow::Result<()> {
        let near = self.near.frame_counts()?;
        let far = self.far.as_ref().map(Segment::frame_counts).transpose()?;
        println!("on the segment: {near:?}");
        let dropped = near.dropped + far.map_or(0, |counts| counts.dropped);
        anyhow::ensure!(
            dropped == 0,
            "{dropped} frames with a pod's address in the outer header were sent to routers or hosts without routes to pods"
        );
        let FrameCounts {
            unencapsulated,
            encapsulated_on_link,
            encapsulated_external,
            dropped: _,
        } = near;
        let expected = match (
            self.mode.sends_unencapsulated_on_link(),
            self.mode.crosses_subnets(),
        ) {
            (false, _) => unencapsulated == 0 && encapsulated_on_link > 0,
            (true, false) => {
                unencapsulated > 0 && encapsulated_on_link == 0 && encapsulated_external == 0
            }
            (true, true) => {
                unencapsulated > 0 && encapsulated_on_link == 0 && encapsulated_external > 0
            }
        };
        anyhow::ensure!(
            expected,
            "the frame counts do not match mode {}: {near:?}",
            self.mode
        );
        Ok(())
    }

    /// The counters of the first segment.
    ///
    /// # Errors
    /// nft cannot be run, or its output is invalid.
    pub fn frame_counts(&self) -> anyhow::Result<FrameCounts> {
        self.near.frame_counts()
    }

    /// Checks that the guard drops: the external host sends a packet of each family with a pod's address to a node, and no answer may come.
    /// A node cannot send this packet, because the agent masquerades it.
    ///
    /// # Errors
    /// The node answered, no frame reached the guard within the limit, or a command fails.
    pub fn check_guard_drops(&self, target: &Node) -> anyhow::Result<()> {
        self.families
            .pools()
            .try_for_each(|pool| self.check_guard_drops_pool(pool, target))
    }

    fn check_guard_drops_pool(&self, pool: IpNet, target: &Node) -> anyhow::Result<()> {
        let before = self.near.frame_counts()?.dropped;
        let pod = objects::unused_pod_address(pool);
        let target = target
            .address_of_family(pod)
            .context("the node has no address of the family")?;
        self.external_host
            .ip(&format!("address add {pod} dev lo"))?;
        let mut ping: Command = self.external_host.command("ping");
        ping.args(["-c", "1", "-W", "1", "-I"]);
        ping.args([pod.to_string(), target.to_string()]);
        let mut answered = false;
        // The first ping may end before neighbour discovery is complete.
        let dropped = until("a frame at the guard", TIMEOUT, || {
            answered |= crate::harness::command::run(&mut ping)?.status.success();
            let dropped = self.near.frame_counts()?.dropped - before;
            anyhow::ensure!(answered || dropped > 0, "the guard counted no frame");
            Ok(dropped)
        })?;
        self.external_host
            .ip(&format!("address delete {pod} dev lo"))?;
        anyhow::ensure!(
            !answered && dropped > 0,
            "the segment's guard let a frame with a pod's address pass"
        );
        Ok(())
    }
}

/// Creates the router between two segments. Returns its namespace and its port on each segment.
fn router(
    run: &mut Run,
    families: Families,
    near: &Segment,
    far: &Segment,
) -> anyhow::Result<(Namespace, [String; 2])> {
    let namespace = Namespace::network(run)?;
    namespace.sysctl("net.ipv4.ip_forward", "1")?;
    if families.has(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
        namespace.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    }
    let port = near.attach(
        &namespace,
        "near",
        &addresses(families, Subnet::Near, ROUTER),
    )?;
    let far_port = far.attach(&namespace, "far", &addresses(families, Subnet::Far, ROUTER))?;
    Ok((namespace, [port, far_port]))
}

/// Arguments of `ip` that set the default route.
pub fn default_route(gateway: IpNet, link: &str) -> String {
    format!("route replace default via {} dev {link}", gateway.addr())
}
