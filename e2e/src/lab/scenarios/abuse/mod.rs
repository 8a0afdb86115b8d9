//! Hostile pods and hosts: each attack is made while everybody talks to everybody, and while agents are killed.
//!
//! ```text
//!   attacks ─▶ nothing arrives, nobody loses anything
//!   agents killed every 200 ms, attacks ─▶ the same
//!   without the filter, attacks ─▶ each succeeds, or the test would show nothing
//! ```

mod attacks;
mod packets;
mod witness;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netweft_crds::PodInterface;

use crate::harness::command::{feed, output};
use crate::lab::scenarios::abuse::attacks::{
    Actor, Attack, Effect, NEIGHBOURS, NODE_PORT, SERVICE_PORT, service_like, tunnel_port,
};
use crate::lab::scenarios::abuse::witness::{ADVERTISEMENT, Place};
use crate::lab::topology::namespace::Namespace;
use crate::lab::traffic::load::Sufferer;
use crate::lab::{Lab, LabMode, Options, run_scenario};
use crate::traffic::inject::Injected;

/// How long attacks last without the filter.
const CONTROL: Duration = Duration::from_secs(2);
/// The base chains of the filter, without masquerading.
const FILTER_CHAINS: [&str; 4] = [
    "prerouting",
    "output",
    "translated_forwarded",
    "translated_received",
];
/// Between two kills of agents.
const KILLS: Duration = Duration::from_millis(200);
/// Between two rounds of attacks.
const PAUSE_MILLIS: &str = "100";

/// Build a lab, and attack it for `time` in each of its states.
///
/// # Errors
/// A check that fails; the agents' logs have been printed then.
pub fn run(options: &Options, time: Duration, keep: bool) -> anyhow::Result<()> {
    let about = format!("hostile pods and hosts, {options}");
    run_scenario(options.clone(), &about, keep, |lab| lab.abuse(time))
}

impl Lab {
    fn abuse(&mut self, time: Duration) -> anyhow::Result<()> {
        self.site.start_servers(true)?;
        for (space, place) in self.witnesses() {
            witness::post(space, place)?;
        }
        self.make_service()?;
        self.open_loopback()?;
        // Link-local addresses of nodes are checked for duplicates at first, and no neighbour is found meanwhile.
        self.everybody_is_reached("before attacks")?;
        let attacks = attacks::all(self)?;
        let all: Vec<&Attack> = attacks.iter().collect();
        let nobody = Sufferer::Nobody;
        self.set_hijack(true)?;
        self.costs("attacks", nobody, |lab| lab.attack(&all, time, |_| Ok(())))?;
        self.expect_no_effect(&attacks, "")?;
        self.costs("attacks while agents are killed", nobody, |lab| {
            lab.attack(&all, time, |lab| lab.kill_agents_for(time))
        })?;
        self.expect_no_effect(&attacks, "while agents are killed")?;
        self.expect_default_routes()?;
        self.prove_attacks(&attacks)
    }

    /// All namespaces but the attackers'.
    fn witnesses(&self) -> impl Iterator<Item = (&Namespace, Place)> {
        let nodes = self.site.nodes.iter();
        let nodes = nodes.map(|node| (&node.space, Place::Host));
        let pods = self
            .site
            .pods
            .iter()
            .skip_while(|pod| pod.name == self.attacker());
        let pods = pods.map(|pod| (&pod.space, Place::Link));
        nodes
            .chain(pods)
            .chain([(self.underlay.outside(), Place::Link)])
    }

    fn attacker(&self) -> &str {
        let mut pods = self.site.pods.iter();
        pods.next().map_or("", |pod| pod.name.as_str())
    }

    fn space_of(&self, actor: Actor) -> anyhow::Result<&Namespace> {
        Ok(match actor {
            Actor::Pod => &self.site.pods.first().context("there is a pod")?.space,
            Actor::Outside => self.underlay.outside(),
        })
    }

    /// A Service on the first node whose endpoint is the tunnel of the second, as kube-proxy makes it.
    fn make_service(&self) -> anyhow::Result<()> {
        let Some(port) = tunnel_port(self.options.mode) else {
            return Ok(());
        };
        let node = self.site.node(1)?;
        let endpoint = self.site.node(2)?.addresses.first().copied();
        let endpoint = endpoint.context("a node has an address")?;
        let service = service_like(endpoint)?;
        let (family, header) = if endpoint.is_ipv4() {
            ("ip", format!("{endpoint}:{port}"))
        } else {
            ("ip6", format!("[{endpoint}]:{port}"))
        };
        let table = format!(
            "table inet service {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    {family} daddr {service} udp dport {SERVICE_PORT} dnat {family} to {header}
                    udp dport {NODE_PORT} dnat {family} to {header}
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    {family} daddr {endpoint} udp dport {port} masquerade
                }}
            }}"
        );
        feed(node.space.command("nft").args(["-f", "-"]), &table)
    }

    /// A Service with a node's address and the tunnel's port, whose endpoint is the hostile pod (CVE-2020-8554).
    fn set_hijack(&self, on: bool) -> anyhow::Result<()> {
        let Some(port) = tunnel_port(self.options.mode) else {
            return Ok(());
        };
        let node = self.site.node(1)?;
        let [own, other] = [1, 2].map(|number| self.site.node(number));
        let [own, other] = [own?, other?].map(|node| node.addresses.first().copied());
        let (own, other) = own.zip(other).context("a node has an address")?;
        let mut pods = self.site.pods.iter();
        let pod = pods.next().and_then(|pod| pod.address_like(own));
        let pod = pod.context("a pod has the family of nodes")?;
        let family = if own.is_ipv4() { "ip" } else { "ip6" };
        let rule = |node| format!("{family} daddr {node} udp dport {port} dnat {family} to {pod}");
        let table = format!(
            "table inet hijack {{
                chain prerouting {{ type nat hook prerouting priority dstnat; {}; }}
                chain output {{ type nat hook output priority -100; {}; }}
            }}",
            rule(own),
            rule(other)
        );
        let table = if on {
            table.as_str()
        } else {
            "delete table inet hijack"
        };
        feed(node.space.command("nft").args(["-f", "-"]), table)
    }

    /// What the host port plugin does with iptables.
    fn open_loopback(&self) -> anyhow::Result<()> {
        self.each_pod_link(1, "echo 1 > /proc/sys/net/ipv4/conf/$link/route_localnet")
    }

    /// A line of the shell for each link of a pod on a node.
    fn each_pod_link(&self, node: usize, line: &str) -> anyhow::Result<()> {
        let script = format!(
            "set -e; for link in $(cd /proc/sys/net/ipv4/conf; ls -d nw[0-9a-f]* nw-br0 2>/dev/null); do {line}; done"
        );
        let space = &self.site.node(node)?.space;
        output(space.command("sh").args(["-c", &script])).map(drop)
    }

    /// Attacks for some time, while something is done.
    fn attack(
        &mut self,
        attacks: &[&Attack],
        time: Duration,
        meanwhile: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let children = [Actor::Pod, Actor::Outside].map(|actor| self.launch(attacks, actor, time));
        let done = meanwhile(self);
        for (actor, child) in [Actor::Pod, Actor::Outside].into_iter().zip(children) {
            let Some(child) = child? else { continue };
            let output = child.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{actor:?}: {said}");
            let injected: Injected = serde_json::from_slice(&output.stdout)?;
            let mut failed = injected.sent.iter().zip(&injected.errors);
            let failed = failed.find(|(sent, _)| **sent == 0);
            ensure!(failed.is_none(), "{actor:?} could not send: {failed:?}");
        }
        done?;
        Ok(began.elapsed())
    }

    fn launch(
        &self,
        attacks: &[&Attack],
        actor: Actor,
        time: Duration,
    ) -> anyhow::Result<Option<Child>> {
        let attacks = attacks.iter().filter(|attack| attack.actor == actor);
        let injections: Vec<_> = attacks.flat_map(|attack| &attack.injections).collect();
        if injections.is_empty() {
            return Ok(None);
        }
        let probe = self.options.binaries.join("netweft-probe");
        let mut command = self.space_of(actor)?.command(probe);
        command.args(["inject", "--pause", PAUSE_MILLIS, "--time"]);
        command.arg(time.as_millis().to_string());
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start the probe")?;
        let mut input = child.stdin.take().context("the probe has an input")?;
        for injection in injections {
            writeln!(input, "{}", serde_json::to_string(injection)?)?;
        }
        Ok(Some(child))
    }

    fn kill_agents_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        let numbers = (1..=self.site.nodes.len()).cycle();
        for number in numbers.take_while(|_| began.elapsed() < time) {
            self.site.node_mut(number)?.0.kill_agent()?;
            self.site.start_agent(number)?;
            std::thread::sleep(KILLS);
        }
        Ok(())
    }

    /// Numbers of packets by port, of all witnesses together.
    fn seen(&self) -> anyhow::Result<BTreeMap<u16, u64>> {
        let mut all = BTreeMap::new();
        for (space, _) in self.witnesses() {
            for (port, packets) in witness::seen(space)? {
                *all.entry(port).or_default() += packets;
            }
        }
        Ok(all)
    }

    /// How far an attack has succeeded.
    fn effect(&self, attack: &Attack, seen: &BTreeMap<u16, u64>) -> anyhow::Result<u64> {
        let of = |port: u16| seen.get(&port).copied().unwrap_or_default();
        Ok(match attack.effect {
            Effect::Datagram(port) => of(port),
            Effect::Advertisement => of(ADVERTISEMENT),
            Effect::Neighbours => {
                let known = self.site.node(1)?.space.ip("-6 neighbour show")?;
                let invented = known.lines().filter(|line| line.starts_with("fe80::bad:"));
                u64::try_from(invented.count())?
            }
            Effect::Stolen(address) => {
                let own = packets::text(self.space_of(Actor::Pod)?.mac("eth0")?);
                let space = &self.site.node(1)?.space;
                let known = space.ip(&format!("neighbour show {address} dev nw-br0"))?;
                u64::from(known.contains(&own))
            }
        })
    }

    fn expect_no_effect(&self, attacks: &[Attack], when: &str) -> anyhow::Result<()> {
        let seen = self.seen()?;
        for attack in attacks {
            let effect = self.effect(attack, &seen)?;
            ensure!(effect == 0, "{} {when}: {effect} arrived", attack.name);
        }
        println!("{} attacks {when}: none succeeds", attacks.len());
        Ok(())
    }

    /// No node sends its own packets by a router that a pod has advertised.
    fn expect_default_routes(&self) -> anyhow::Result<()> {
        for node in &self.site.nodes {
            let routes = node.space.ip("-6 route show default proto ra")?;
            ensure!(routes.is_empty(), "{} follows {routes}", node.name);
        }
        Ok(())
    }

    /// Each attack succeeds where its defence is missing.
    fn prove_attacks(&mut self, attacks: &[Attack]) -> anyhow::Result<()> {
        self.set_hijack(false)?;
        for number in 1..=self.site.nodes.len() {
            self.site.node_mut(number)?.0.kill_agent()?;
            let node = self.site.node(number)?;
            node.space.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
            let listed = output(
                node.space
                    .command("nft")
                    .args(["list", "table", "inet", "netweft"]),
            )?;
            let chains = FILTER_CHAINS.iter();
            let there = |chain: &&&str| listed.contains(&format!("chain {chain} {{"));
            let flush = chains
                .filter(there)
                .map(|chain| format!("flush chain inet netweft {chain}\n"));
            let flush: String = flush.collect();
            let bridge = match self.options.pod_interface {
                PodInterface::Bridge => "flush chain bridge netweft prerouting\n",
                PodInterface::Routed => "",
            };
            feed(
                node.space.command("nft").args(["-f", "-"]),
                &(flush + bridge),
            )?;
            self.each_pod_link(number, "echo 0 > /proc/sys/net/ipv4/conf/$link/rp_filter")?;
        }
        // Who has taken the place of a neighbour receives the packets of the other attacks.
        let (last, first): (Vec<_>, Vec<_>) = attacks.iter().partition(|attack| attack.steals);
        for some in [first, last] {
            self.attack(&some, CONTROL, |_| Ok(()))?;
        }
        let seen = self.seen()?;
        for attack in attacks.iter().filter(|it| it.succeeds_without_filter) {
            let effect = self.effect(attack, &seen)?;
            let enough = match attack.effect {
                Effect::Neighbours => u64::from(NEIGHBOURS / 2),
                Effect::Datagram(_) | Effect::Advertisement | Effect::Stolen(_) => 1,
            };
            ensure!(
                effect >= enough,
                "{} has no effect without the filter, so the filter was not tested",
                attack.name
            );
        }
        println!("without the filter the attacks succeed");
        self.prove_hijack()
    }

    fn prove_hijack(&self) -> anyhow::Result<()> {
        // The relay's only flow was tracked before.
        if self.options.mode != LabMode::Vxlan {
            return Ok(());
        }
        self.set_hijack(true)?;
        let of_node = |node: &str| self.site.pods.iter().find(|pod| pod.node == node);
        let (pod, other) = of_node("node-1").zip(of_node("node-2")).context("pods")?;
        let answers = pod.space.ping(&self.options.binaries, &other.addresses)?;
        ensure!(
            answers.iter().all(|answer| answer.received == 0),
            "a Service on the tunnel's port has no effect without the filter, so the filter was not tested"
        );
        Ok(())
    }
}
