//! Misconfigured, unreachable and hostile peers. The status reports them, and all other sessions and routes stay unchanged.

use std::fmt::Write;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use netweft_crds::SessionFault;
use serde_json::json;

use crate::harness::poll::until;
use crate::lab::cluster::objects;
use crate::lab::node::bird;
use crate::lab::scenarios::bgp::{GATEWAY, Lab};
use crate::lab::topology::underlay::{Subnet, addresses};
use crate::traffic::loss_meter::INTERVAL;

/// Limit until the status reports an error. It takes ten seconds; the limit allows for a busy machine.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the status must keep reporting the error. BIRD repeats some errors only once a minute, for some seconds.
const STABLE_TIME: Duration = Duration::from_secs(15);
/// How long a node announces a block of another node.
const HOSTILE_TIME: Duration = Duration::from_secs(5);
/// AS number of the nodes.
const NODE_AS: u32 = 64_512;
/// AS number of the foreign speakers.
const FOREIGN_AS: u32 = 65_010;
/// Part of the routes that the foreign speaker `too-many`, host number 108, may add.
const ACCEPTED_ROUTES: &str = "via 192.0.2.108 ";
/// A number of prefixes above any limit.
const PREFIX_COUNT: u32 = 100_000;

/// A peer and its expected errors.
struct Case {
    name: &'static str,
    /// Additional statements of the BGP protocol in the peer's BIRD; `None` for a peer without BIRD.
    session: Option<&'static str>,
    /// Prefixes that the peer announces.
    announces: Vec<String>,
    /// Fields of the BGPPeer in addition to address and AS number.
    spec: serde_json::Value,
    /// Acceptable reasons of the reported error.
    faults: &'static [SessionFault],
}

fn case(
    name: &'static str,
    session: Option<&'static str>,
    faults: &'static [SessionFault],
) -> Case {
    Case {
        name,
        session,
        announces: Vec::new(),
        spec: json!({}),
        faults,
    }
}

impl Lab {
    /// Adds all peers to node 1 at the same time.
    pub fn run_foreign_peers(&mut self) -> anyhow::Result<()> {
        self.cluster.label("node-1", "foreign-peers", "yes");
        self.cluster.set_password("wrong-password", "right")?;
        let cases = self.cases()?;
        let sessions = self.cluster.established()?;
        let routes = self.routes()?;
        let meter = self.cluster.meter(INTERVAL)?;
        let started = Instant::now();
        for (number, case) in (100..).zip(&cases) {
            self.add_peer(number, case)?;
        }
        let reported = self.check_reported_errors(&cases, started);
        let losses = meter.finish()?;
        reported?;
        losses.check_none("misconfigured, unreachable and hostile peers")?;
        for (before, now) in routes.iter().zip(self.routes()?) {
            // The prefixes of `too-many` are in the pools and not assigned, so that the node accepts them up to maxPrefixes.
            let now: Vec<&str> = now
                .lines()
                .filter(|line| !line.contains(ACCEPTED_ROUTES))
                .collect();
            let before: Vec<&str> = before.lines().collect();
            ensure!(
                before == now,
                "routes have changed: {before:?}, then {now:?}"
            );
        }
        let now = self.cluster.established()?;
        for (node, sessions) in sessions {
            let unchanged =
                |(name, since)| now.get(&node).and_then(|now| now.get(name)) == Some(since);
            ensure!(
                sessions.iter().all(unchanged),
                "sessions of {node} have restarted: {sessions:?}, then {:?}",
                now.get(&node)
            );
        }
        self.check_hostile_node()
    }

    /// The BIRD of node 2 announces a block of node 3 with the highest preference. Node 1 keeps its route.
    fn check_hostile_node(&mut self) -> anyhow::Result<()> {
        let block = self.ipv4_block("node-3")?;
        let route = |lab: &Self| {
            lab.cluster
                .node(1)?
                .namespace
                .ip(&format!("route show {block}"))
        };
        let before = route(self)?;
        let programs = self.cluster.bird_programs()?.to_owned();
        self.cluster.node_mut(2)?.0.kill_agent()?;
        let hostile = self.cluster.node(2)?;
        let folder = fs::read_dir(hostile.namespace.file(bird::FOLDER))?;
        let files = folder.map(|entry| Ok(entry?.path()));
        for file in files.collect::<anyhow::Result<Vec<_>>>()? {
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            let own = "protocol static nw_own_v4 {\n\tipv4;\n";
            let accepted = "if proto = \"nw_own_v4\" then accept;";
            let preferred =
                "if proto = \"nw_own_v4\" then { bgp_local_pref = 4294967295; accept; }";
            let stolen = format!("{own}\troute {block} unreachable;\n");
            fs::write(
                &file,
                text.replace(own, &stolen).replace(accepted, preferred),
            )?;
        }
        bird::run_command(&hostile.namespace, &programs, "configure")?;
        let (receiver, source) = (&self.cluster.node(1)?.namespace, hostile.addresses.first());
        let source = source.context("the host has no address")?;
        let command = format!("show route filtered for {block}");
        until("the filtered announcement", REPORT_TIMEOUT, || {
            let routes = bird::run_command(receiver, &programs, &command)?;
            ensure!(routes.contains(&format!("via {source} ")), "{routes}");
            Ok(())
        })?;
        sleep(HOSTILE_TIME);
        let after = route(self)?;
        ensure!(
            before == after,
            "the route to {block} was {before} and is {after}"
        );
        self.cluster.start_agent(2)?;
        self.cluster.wait_for_desired_state()
    }

    /// The IPv4 block of a node.
    fn ipv4_block(&self, node: &str) -> anyhow::Result<IpNet> {
        let subnets = &self.cluster.store.network(node)?.spec.subnets;
        let block = subnets.iter().find(|block| block.addr().is_ipv4());
        block.copied().context("the node has no IPv4 block")
    }

    fn cases(&self) -> anyhow::Result<Vec<Case>> {
        use SessionFault::{
            ASNumberMismatch, ConnectTimeout, ConnectionRefused, NoRouteToPeer, PrefixesRejected,
            TooManyPrefixes,
        };
        let own = self.ipv4_block("node-1")?.to_string();
        let other = self.ipv4_block("node-2")?.to_string();
        let pod = self
            .cluster
            .pods
            .last()
            .context("the pod does not exist")?
            .addresses
            .first();
        let pod = pod.context("the pod has no address of the family")?;
        let pools = self.families.pools().filter(|pool| pool.addr().is_ipv4());
        let pools = pools.map(|pool| pool.to_string());
        let node = self
            .cluster
            .node(2)?
            .addresses
            .first()
            .context("the host has no address")?;
        let hostile = |name, announces: Vec<String>| Case {
            announces,
            ..case(name, Some(""), &[PrefixesRejected])
        };
        let many = (0..PREFIX_COUNT)
            .map(|n| format!("100.{}.{}.{}/32", 64 + (n >> 16), (n >> 8) & 255, n & 255));
        let unassigned = (0..200).map(|n| format!("10.244.{}.{}/26", 128 + n / 4, n % 4 * 64));
        Ok(vec![
            Case {
                spec: json!({ "password": { "secretKeyRef": { "name": "passwords", "key": "right" } } }),
                ..case(
                    "wrong-password",
                    Some("authentication md5; password \"wrong\";"),
                    &[ConnectTimeout],
                )
            },
            case("wrong-as", Some("local as 65099;"), &[ASNumberMismatch]),
            case("absent-host", None, &[ConnectTimeout, NoRouteToPeer]),
            Case {
                spec: json!({ "peerIP": addresses(self.families, Subnet::Near, GATEWAY).first().map(IpNet::addr) }),
                ..case("no-speaker", None, &[ConnectionRefused])
            },
            hostile("default-route", vec!["0.0.0.0/0".into()]),
            hostile("node-addresses", vec![format!("{node}/32")]),
            hostile(
                "pods-of-cluster",
                pools.chain([own, other, format!("{pod}/32")]).collect(),
            ),
            hostile("100000-prefixes", many.collect()),
            Case {
                announces: unassigned.collect(),
                spec: json!({ "maxPrefixes": 50 }),
                ..case("too-many", Some(""), &[TooManyPrefixes])
            },
        ])
    }

    /// Starts the peer's BIRD and creates its BGPPeer for node 1.
    fn add_peer(&mut self, number: u8, case: &Case) -> anyhow::Result<()> {
        let node = *self
            .cluster
            .node(1)?
            .addresses
            .first()
            .context("the host has no address")?;
        if let Some(session) = case.session {
            let local = if session.contains("local as") {
                String::new()
            } else {
                format!("local as {FOREIGN_AS};")
            };
            let mut routes = String::new();
            for prefix in &case.announces {
                // Writing to a String does not fail.
                let _ = writeln!(routes, "route {prefix} blackhole;");
            }
            self.start_foreign_speaker(number, |_| {
                format!(
                    "protocol static announced {{ ipv4; {routes} }}
                    protocol bgp n {{ {local} neighbor {node} as {NODE_AS}; {session} connect delay time 1;
                    ipv4 {{ import all; export where proto = \"announced\"; }}; }}\n"
                )
            })?;
        }
        let address = addresses(self.families, Subnet::Near, number);
        let address = address.first().context("the host has no address")?.addr();
        let mut spec = json!({
            "nodeSelector": { "matchLabels": { "foreign-peers": "yes" } },
            "peerIP": address, "asNumber": FOREIGN_AS, "connectRetryTime": "1s",
        });
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), case.spec.as_object()) {
            spec.extend(more.clone());
        }
        self.cluster
            .store
            .peers
            .push(objects::peer(case.name, &spec)?);
        self.cluster.reconcile()
    }

    /// Checks that the status reports the error of every peer, and keeps reporting it while the peer retries.
    fn check_reported_errors(&mut self, cases: &[Case], started: Instant) -> anyhow::Result<()> {
        for case in cases {
            let message = until(case.name, REPORT_TIMEOUT, || self.reported_error(case))?;
            let seconds = started.elapsed().as_secs_f32();
            println!("{seconds:5.1} s  {}: {message}", case.name);
        }
        let all_reported = Instant::now();
        while all_reported.elapsed() < STABLE_TIME {
            sleep(Duration::from_secs(1));
            for case in cases {
                let reported = self.reported_error(case);
                reported.context("the error was reported before")?;
            }
        }
        Ok(())
    }

    /// The error in the BGPPeer's status, if its reason is acceptable.
    fn reported_error(&mut self, case: &Case) -> anyhow::Result<String> {
        self.cluster.reconcile()?;
        let status = self.cluster.store.peer_status(case.name);
        let errors = status.map(|status| status.errors.as_slice());
        let error = errors.unwrap_or_default().first();
        let error = error
            .with_context(|| format!("the status of {} reports no error: {status:?}", case.name))?;
        ensure!(
            case.faults.contains(&error.reason) && error.node == "node-1",
            "the status of {} reports another error: {error:?}",
            case.name
        );
        Ok(format!("{:?}: {}", error.reason, error.message))
    }

    /// The IPv4 routes of the main table of all nodes.
    fn routes(&self) -> anyhow::Result<Vec<String>> {
        let routes_of =
            |node: &crate::lab::node::Node| node.namespace.ip("-4 route show table main");
        self.cluster.nodes.iter().map(routes_of).collect()
    }
}
