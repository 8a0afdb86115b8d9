//! What the nodes are connected by: one segment, or two and a router between them, and a host that is no node.
//!
//! ```text
//!   one subnet     nodes ══════ host outside
//!   two subnets    nodes 1 and 2 ══╤══ host outside
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
use crate::lab::topology::segment::{Seen, Segment};

/// Number of the host outside.
const OUTSIDE: u8 = 200;
/// Number of the router on each segment.
const ROUTER: u8 = 254;
/// The Ethernet address of two nodes on different segments.
const TWINS: &str = "02:00:00:00:00:99";
/// Port of the outside's server.
const PORT: u16 = 8080;
/// How long a frame may take to be sent.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Which of the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subnet {
    /// The one, or the first.
    Near,
    /// Behind the router.
    Far,
}

/// The addresses of host number `number` in a subnet, those that are for documentation (RFC 5737, RFC 3849), with the
/// subnet's prefix length.
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

/// All that is between the nodes.
pub struct Underlay {
    near: Segment,
    far: Option<Segment>,
    outside: Namespace,
    router: Option<Namespace>,
    families: Families,
    mode: LabMode,
}

impl Underlay {
    /// Segments with guards, a router if there are two segments, and a host outside. Only this host may receive addresses of pods,
    /// and only without masquerading.
    pub fn make(
        run: &mut Run,
        mode: LabMode,
        families: Families,
        masquerading: bool,
    ) -> anyhow::Result<Self> {
        let near = Segment::make(run)?;
        let outside = Namespace::network(run)?;
        let theirs = addresses(families, Subnet::Near, OUTSIDE);
        let mut elsewhere = vec![near.attach(&outside, "host0", &theirs)?];
        let plain = mode.is_plain_on_link();
        let friends = if masquerading { &[][..] } else { &theirs };
        let (mut far, mut between) = (None, None);
        if mode.crosses_subnets() {
            let segment = Segment::make(run)?;
            let (router, [port, far_port]) = router(run, families, &near, &segment)?;
            elsewhere.push(port);
            segment.guard(families, &[far_port], plain, friends)?;
            for net in addresses(families, Subnet::Near, ROUTER) {
                outside.ip(&default_route(net, "host0"))?;
            }
            (far, between) = (Some(segment), Some(router));
        }
        near.guard(families, &elsewhere, plain, friends)?;
        Ok(Self {
            near,
            far,
            outside,
            router: between,
            families,
            mode,
        })
    }

    /// Where node number `number` is at first.
    pub fn subnet_of(&self, number: u8) -> Subnet {
        if self.far.is_some() && number == 3 {
            Subnet::Far
        } else {
            Subnet::Near
        }
    }

    /// Connect a node, with a default route as every real node has one: what is not routed elsewhere must be seen to leave.
    pub fn connect(
        &self,
        node: &mut Node,
        uplink: &str,
        subnet: Subnet,
        number: u8,
    ) -> anyhow::Result<()> {
        let nets = addresses(self.families, subnet, number);
        self.segment(subnet)?.attach(&node.space, uplink, &nets)?;
        if self.far.is_some() && self.subnet_of(number) == subnet && [1, 3].contains(&number) {
            // On two segments that may be: nothing may be made of a node's own Ethernet address. (Its machine-id all nodes share.)
            let twin = format!("link set {uplink} address {TWINS}");
            node.space.ip(&twin)?;
        }
        node.addresses = nets.iter().map(IpNet::addr).collect();
        self.show_the_way_out(node, uplink, subnet)
    }

    /// Give a node its default routes.
    pub fn show_the_way_out(
        &self,
        node: &Node,
        uplink: &str,
        subnet: Subnet,
    ) -> anyhow::Result<()> {
        let router = if self.far.is_some() { ROUTER } else { OUTSIDE };
        for gateway in addresses(self.families, subnet, router) {
            node.space.ip(&default_route(gateway, uplink))?;
        }
        Ok(())
    }

    /// Take a node's uplink away.
    pub fn disconnect(&self, node: &Node, subnet: Subnet) -> anyhow::Result<()> {
        self.segment(subnet)?.detach(&node.space)
    }

    fn segment(&self, subnet: Subnet) -> anyhow::Result<&Segment> {
        match subnet {
            Subnet::Near => Ok(&self.near),
            Subnet::Far => self.far.as_ref().context("there is a second segment"),
        }
    }

    /// The host outside.
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// The servers of the host outside, one address of each family.
    pub fn servers(&self) -> impl Iterator<Item = SocketAddr> {
        let nets = addresses(self.families, Subnet::Near, OUTSIDE).into_iter();
        nets.map(|net| SocketAddr::new(net.addr(), PORT))
    }

    /// Let the host outside answer.
    pub fn start_server(&self, run: &mut Run, binaries: &Path) -> anyhow::Result<()> {
        let mut command = self.outside.command(binaries.join("netweft-probe"));
        command.args(["serve", "--port", &PORT.to_string()]);
        let log = run.folder().join("outside.log");
        self.outside.start(run, &mut command, &log)?;
        for server in self.servers() {
            let ask = || self.outside.ask(binaries, "tcp", server, 0);
            until("the server outside", Duration::from_secs(5), ask)?;
        }
        Ok(())
    }

    /// Tell the host outside, and the router between if there is one, by which node a pod is reached.
    pub fn show_outside_the_way(&self, pod: IpAddr, node: IpAddr) -> anyhow::Result<()> {
        let on_link = |subnet| {
            let nets = addresses(self.families, subnet, OUTSIDE);
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
            router.context("the router has an address of the family")?
        };
        let way = format!("route replace {pod} via {next} dev host0");
        self.outside.ip(&way).map(drop)
    }

    /// Packets took the ways that the mode promises: this is what a capture would show.
    ///
    /// # Errors
    /// Packets were seen where there should be none, or none where there should be some.
    pub fn check_ways(&self) -> anyhow::Result<()> {
        let near = self.near.seen()?;
        let far = self.far.as_ref().map(Segment::seen).transpose()?;
        println!("on the segment: {near:?}");
        let dropped = near.dropped + far.map_or(0, |seen| seen.dropped);
        anyhow::ensure!(
            dropped == 0,
            "{dropped} frames with a pod's address in the outer header were where no router has a route to pods"
        );
        let Seen {
            plain,
            encapsulated_here,
            encapsulated_there,
            dropped: _,
        } = near;
        let expected = match (self.mode.is_plain_on_link(), self.mode.crosses_subnets()) {
            (false, _) => plain == 0 && encapsulated_here > 0,
            (true, false) => plain > 0 && encapsulated_here == 0 && encapsulated_there == 0,
            (true, true) => plain > 0 && encapsulated_here == 0 && encapsulated_there > 0,
        };
        anyhow::ensure!(
            expected,
            "these are not the ways of {}: {near:?}",
            self.mode
        );
        Ok(())
    }

    /// What has been seen on the first segment until now.
    ///
    /// # Errors
    /// The guard does not tell.
    pub fn seen(&self) -> anyhow::Result<Seen> {
        self.near.seen()
    }

    /// The guard does drop: one packet of each family with a pod's address in the outer header is sent to a node and must be missed.
    /// It is sent by the host outside: a node would masquerade it. (A guard that lets everything pass would prove nothing.)
    ///
    /// # Errors
    /// The packet has passed.
    pub fn prove_guard(&self, to: &Node) -> anyhow::Result<()> {
        self.families
            .pools()
            .try_for_each(|pool| self.prove_guard_of(pool, to))
    }

    fn prove_guard_of(&self, pool: IpNet, to: &Node) -> anyhow::Result<()> {
        let before = self.near.seen()?.dropped;
        let pod = objects::unused_pod_address(pool);
        let target = to.address_like(pod).context("a node has the family")?;
        self.outside.ip(&format!("address add {pod} dev lo"))?;
        let mut ping: Command = self.outside.command("ping");
        ping.args(["-c", "1", "-W", "1", "-I"]);
        ping.args([pod.to_string(), target.to_string()]);
        let mut answered = false;
        // A neighbour may have to be found first.
        let dropped = until("a frame to come to the guard", TIMEOUT, || {
            answered |= crate::harness::command::run(&mut ping)?.status.success();
            let dropped = self.near.seen()?.dropped - before;
            anyhow::ensure!(answered || dropped > 0, "none has");
            Ok(dropped)
        })?;
        self.outside.ip(&format!("address delete {pod} dev lo"))?;
        anyhow::ensure!(
            !answered && dropped > 0,
            "the segment's guard let a frame with a pod's address pass"
        );
        Ok(())
    }
}

/// A router between two segments, and its port on each.
fn router(
    run: &mut Run,
    families: Families,
    near: &Segment,
    far: &Segment,
) -> anyhow::Result<(Namespace, [String; 2])> {
    let space = Namespace::network(run)?;
    space.sysctl("net.ipv4.ip_forward", "1")?;
    if families.has(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
        space.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    }
    let port = near.attach(&space, "near", &addresses(families, Subnet::Near, ROUTER))?;
    let far_port = far.attach(&space, "far", &addresses(families, Subnet::Far, ROUTER))?;
    Ok((space, [port, far_port]))
}

pub fn default_route(gateway: IpNet, link: &str) -> String {
    format!("route replace default via {} dev {link}", gateway.addr())
}
