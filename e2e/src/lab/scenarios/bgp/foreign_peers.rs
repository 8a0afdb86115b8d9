//! Peers that are misconfigured, silent or announce wrong routes: the status reports them, and other sessions are unaffected.

use std::fmt::Write;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netweft_crds::SessionFault;
use serde_json::json;

use crate::harness::poll::until;
use crate::lab::cluster::objects;
use crate::lab::node::bird;
use crate::lab::scenarios::bgp::{GATEWAY, Lab};
use crate::lab::topology::underlay::{Subnet, addresses};
use crate::traffic::loss_meter::INTERVAL;

/// Within ten seconds the status is to say what is wrong; a machine that does other things gets more.
const SAID: Duration = Duration::from_secs(60);
/// How long it is to be said from then on: a refusal is seen anew only once a minute, for seconds.
const KEPT: Duration = Duration::from_secs(15);
/// How long a node announces a block of another node.
const HOSTILE: Duration = Duration::from_secs(5);
/// Our AS number.
const OURS: u32 = 64_512;
/// The foreign speakers'.
const THEIRS: u32 = 65_010;
/// By what the kernel's routes are known that one of the foreign speakers may add: it sits at host number 108.
const TAKEN: &str = "via 192.0.2.108 ";
/// A number of prefixes above every limit.
const PREFIX_COUNT: u32 = 100_000;

/// One peer and what is to be said about it.
struct Case {
    name: &'static str,
    /// What its BIRD's session has besides; `None`: there is no BIRD.
    session: Option<&'static str>,
    /// Prefixes it announces.
    announces: Vec<String>,
    /// What its BGPPeer has besides address and AS number.
    spec: serde_json::Value,
    /// Any of these is right.
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
    /// All of them at once, at node 1.
    pub fn foreign_peers(&mut self) -> anyhow::Result<()> {
        self.site.label("node-1", "tries", "peers");
        self.site.set_password("wrong-password", "right")?;
        let cases = self.cases()?;
        let sessions = self.site.established()?;
        let routes = self.routes()?;
        let meter = self.site.meter(INTERVAL)?;
        let begun = Instant::now();
        for (number, case) in (100..).zip(&cases) {
            self.meet(number, case)?;
        }
        let reported = self.all_reported(&cases, begun);
        let losses = meter.finish()?;
        reported?;
        losses.check_none("while peers were wrong, silent or lied")?;
        for (before, now) in routes.iter().zip(self.routes()?) {
            // The prefixes of the peer with too many are inside the pools and no node's blocks, so the import limit applies to them.
            let now: Vec<&str> = now.lines().filter(|line| !line.contains(TAKEN)).collect();
            let before: Vec<&str> = before.lines().collect();
            ensure!(
                before == now,
                "routes have changed: {before:?}, then {now:?}"
            );
        }
        let now = self.site.established()?;
        for (node, sessions) in sessions {
            let kept = |(name, since)| now.get(&node).and_then(|now| now.get(name)) == Some(since);
            ensure!(
                sessions.iter().all(kept),
                "sessions of {node} have begun anew: {sessions:?}, then {:?}",
                now.get(&node)
            );
        }
        self.hostile_node()
    }

    /// Node 2 is taken over, and its BIRD announces a block of node 3 with the highest preference: node 1 keeps its route.
    fn hostile_node(&mut self) -> anyhow::Result<()> {
        let subnets = &self.site.store.network("node-3")?.spec.subnets;
        let block = subnets.iter().find(|block| block.addr().is_ipv4());
        let block = *block.context("a node has a block")?;
        let route = |lab: &Self| lab.site.node(1)?.space.ip(&format!("route show {block}"));
        let before = route(self)?;
        let programs = self.site.bird_programs()?.to_owned();
        self.site.node_mut(2)?.0.kill_agent()?;
        let hostile = self.site.node(2)?;
        let folder = fs::read_dir(hostile.space.file(bird::FOLDER))?;
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
        bird::ask(&hostile.space, &programs, "configure")?;
        let (victim, from) = (&self.site.node(1)?.space, hostile.addresses.first());
        let from = from.context("an address")?;
        let shown = format!("show route filtered for {block}");
        until("the hostile announcement", SAID, || {
            let said = bird::ask(victim, &programs, &shown)?;
            ensure!(said.contains(&format!("via {from} ")), "{said}");
            Ok(())
        })?;
        sleep(HOSTILE);
        let after = route(self)?;
        ensure!(before == after, "{block} was {before}, and is {after}");
        self.site.start_agent(2)?;
        self.site.is_as_wanted()
    }

    fn cases(&self) -> anyhow::Result<Vec<Case>> {
        use SessionFault::{
            ASNumberMismatch, ConnectTimeout, ConnectionRefused, NoRouteToPeer, PrefixesRejected,
            TooManyPrefixes,
        };
        let block = |node: &str| {
            let subnets = &self.site.store.network(node)?.spec.subnets;
            let block = subnets.iter().find(|block| block.addr().is_ipv4());
            anyhow::Ok(block.context("a node has a block")?.to_string())
        };
        let (own, other) = (block("node-1")?, block("node-2")?);
        let pod = self.site.pods.last().context("a pod")?.addresses.first();
        let pod = pod.context("a pod's address")?;
        let pools = self.families.pools().filter(|pool| pool.addr().is_ipv4());
        let pools = pools.map(|pool| pool.to_string());
        let node = self.site.node(2)?.addresses.first().context("an address")?;
        let lies = |name, announces: Vec<String>| Case {
            announces,
            ..case(name, Some(""), &[PrefixesRejected])
        };
        let many = (0..PREFIX_COUNT)
            .map(|n| format!("100.{}.{}.{}/32", 64 + (n >> 16), (n >> 8) & 255, n & 255));
        let inside = (0..200).map(|n| format!("10.244.{}.{}/26", 128 + n / 4, n % 4 * 64));
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
            case("no-host", None, &[ConnectTimeout, NoRouteToPeer]),
            Case {
                spec: json!({ "peerIP": addresses(self.families, Subnet::Near, GATEWAY).first().map(ipnet::IpNet::addr) }),
                ..case("no-speaker", None, &[ConnectionRefused])
            },
            lies("default-route", vec!["0.0.0.0/0".into()]),
            lies("node-addresses", vec![format!("{node}/32")]),
            lies(
                "our-pools",
                pools.chain([own, other, format!("{pod}/32")]).collect(),
            ),
            lies("100000-prefixes", many.collect()),
            Case {
                announces: inside.collect(),
                spec: json!({ "maxPrefixes": 50 }),
                ..case("too-many", Some(""), &[TooManyPrefixes])
            },
        ])
    }

    /// Let the peer speak, and node 1 speak with it.
    fn meet(&mut self, number: u8, case: &Case) -> anyhow::Result<()> {
        let node = *self.site.node(1)?.addresses.first().context("an address")?;
        if let Some(session) = case.session {
            let local = if session.contains("local as") {
                String::new()
            } else {
                format!("local as {THEIRS};")
            };
            let mut routes = String::new();
            for prefix in &case.announces {
                // Writing to a String does not fail.
                let _ = writeln!(routes, "route {prefix} blackhole;");
            }
            self.foreign_speaker(number, |_| {
                format!(
                    "protocol static lies {{ ipv4; {routes} }}
                    protocol bgp n {{ {local} neighbor {node} as {OURS}; {session} connect delay time 1;
                    ipv4 {{ import all; export where proto = \"lies\"; }}; }}\n"
                )
            })?;
        }
        let address = addresses(self.families, Subnet::Near, number);
        let address = address.first().context("an address")?.addr();
        let mut spec = json!({
            "nodeSelector": { "matchLabels": { "tries": "peers" } },
            "peerIP": address, "asNumber": THEIRS, "connectRetryTime": "1s",
        });
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), case.spec.as_object()) {
            spec.extend(more.clone());
        }
        self.site.store.peers.push(objects::peer(case.name, &spec)?);
        self.site.settle()
    }

    /// Every case is reported with its reason, and stays reported, whatever the peer does between two attempts.
    fn all_reported(&mut self, cases: &[Case], begun: Instant) -> anyhow::Result<()> {
        for case in cases {
            let message = until(case.name, SAID, || self.reported(case))?;
            let seconds = begun.elapsed().as_secs_f32();
            println!("{seconds:5.1} s  {}: {message}", case.name);
        }
        let begun = Instant::now();
        while begun.elapsed() < KEPT {
            sleep(Duration::from_secs(1));
            for case in cases {
                self.reported(case).context("it was reported before")?;
            }
        }
        Ok(())
    }

    /// The error in the BGPPeer's status, if it is the expected one.
    fn reported(&mut self, case: &Case) -> anyhow::Result<String> {
        self.site.settle()?;
        let status = self.site.store.peer_status(case.name);
        let errors = status.map(|status| status.errors.as_slice());
        let error = errors.unwrap_or_default().first();
        let error =
            error.with_context(|| format!("{} is not said to be wrong: {status:?}", case.name))?;
        ensure!(
            case.faults.contains(&error.reason) && error.node == "node-1",
            "{} is said to be wrong because of {error:?}",
            case.name
        );
        Ok(format!("{:?}: {}", error.reason, error.message))
    }

    /// All routes of all nodes but to their own pods.
    fn routes(&self) -> anyhow::Result<Vec<String>> {
        let of = |node: &crate::lab::node::Node| node.space.ip("-4 route show table main");
        self.site.nodes.iter().map(of).collect()
    }
}
