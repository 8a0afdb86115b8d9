//! Attacks of hostile pods and hosts while all pods exchange traffic, also while agents are killed.
//!
//! ```text
//!   attacks ─▶ no packet is delivered, no loss of other traffic
//!   attacks, agents killed every 200 ms ─▶ the same
//!   attacks without the filter ─▶ all succeed, which shows that the attacks are effective
//! ```

mod attacks;
mod packet_counters;
mod packets;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netweft_crds::PodInterface;

use crate::harness::command::output;
use crate::lab::scenarios::abuse::attacks::{
    Attack, Attacker, Effect, NEIGHBOURS, NODE_PORT, SERVICE_PORT, service_of_family, tunnel_port,
};
use crate::lab::scenarios::abuse::packet_counters::{CountAt, ROUTER_ADVERTISEMENT};
use crate::lab::topology::namespace::Namespace;
use crate::lab::topology::nft;
use crate::lab::traffic::load::ExpectedLoss;
use crate::lab::{Lab, LabMode, Options, run_scenario};
use crate::traffic::inject::Injected;

/// How long attacks last without the filter.
const UNFILTERED_TIME: Duration = Duration::from_secs(2);
/// The base chains of the filter. The chain of masquerading is not part of it.
const FILTER_CHAINS: [&str; 4] = ["prerouting", "output", "input", "translated"];
/// Time between two kills of agents.
const KILL_INTERVAL: Duration = Duration::from_millis(200);
/// Milliseconds between two rounds of attacks.
const PAUSE_MILLIS: &str = "100";

/// Builds a lab and runs all attacks for `time`, with running agents and with killed agents.
///
/// # Errors
/// The lab cannot be built, or a check fails. The agents' logs are printed then.
pub fn run(options: &Options, time: Duration, keep: bool) -> anyhow::Result<()> {
    let title = format!("hostile pods and hosts, {options}");
    run_scenario(options.clone(), &title, keep, |lab| lab.run_abuse(time))
}

impl Lab {
    fn run_abuse(&mut self, time: Duration) -> anyhow::Result<()> {
        self.cluster.start_servers(true)?;
        for (namespace, count_at) in self.observed_namespaces() {
            packet_counters::create(namespace, count_at)?;
        }
        self.create_service()?;
        self.enable_route_localnet()?;
        // Neighbour discovery fails during duplicate address detection of the nodes' link-local addresses.
        self.check_reachability("before attacks")?;
        let attacks = attacks::all(self)?;
        let all: Vec<&Attack> = attacks.iter().collect();
        let no_loss = ExpectedLoss::None;
        self.set_hijack(true)?;
        self.expect_loss("attacks", no_loss, |lab| lab.attack(&all, time, |_| Ok(())))?;
        self.check_no_effect(&attacks, "")?;
        self.expect_loss("attacks while agents are killed", no_loss, |lab| {
            lab.attack(&all, time, |lab| lab.kill_agents_for(time))
        })?;
        self.check_no_effect(&attacks, "while agents are killed")?;
        self.check_no_advertised_routes()?;
        self.check_attacks_without_filter(&attacks)
    }

    /// All namespaces except the attacking pod's.
    fn observed_namespaces(&self) -> impl Iterator<Item = (&Namespace, CountAt)> {
        let nodes = self.cluster.nodes.iter();
        let nodes = nodes.map(|node| (&node.namespace, CountAt::Input));
        let pods = self
            .cluster
            .pods
            .iter()
            .skip_while(|pod| pod.name == self.attacking_pod());
        let pods = pods.map(|pod| (&pod.namespace, CountAt::Prerouting));
        nodes
            .chain(pods)
            .chain([(self.underlay.external_host(), CountAt::Prerouting)])
    }

    fn attacking_pod(&self) -> &str {
        let mut pods = self.cluster.pods.iter();
        pods.next().map_or("", |pod| pod.name.as_str())
    }

    fn namespace_of(&self, attacker: Attacker) -> anyhow::Result<&Namespace> {
        Ok(match attacker {
            Attacker::Pod => {
                &self
                    .cluster
                    .pods
                    .first()
                    .context("the lab has no pod")?
                    .namespace
            }
            Attacker::ExternalHost => self.underlay.external_host(),
        })
    }

    /// Creates a Service on the first node whose endpoint is the tunnel port of the second, with rules like kube-proxy's.
    fn create_service(&self) -> anyhow::Result<()> {
        let Some(port) = tunnel_port(self.options.mode) else {
            return Ok(());
        };
        let node = self.cluster.node(1)?;
        let endpoint = self.cluster.node(2)?.addresses.first().copied();
        let endpoint = endpoint.context("the node has no address")?;
        let service = service_of_family(endpoint);
        let (family, destination) = if endpoint.is_ipv4() {
            ("ip", format!("{endpoint}:{port}"))
        } else {
            ("ip6", format!("[{endpoint}]:{port}"))
        };
        let table = format!(
            "table inet service {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    {family} daddr {service} udp dport {SERVICE_PORT} dnat {family} to {destination}
                    udp dport {NODE_PORT} dnat {family} to {destination}
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    {family} daddr {endpoint} udp dport {port} masquerade
                }}
            }}"
        );
        nft::run_script(&node.namespace, &table)
    }

    /// Creates or deletes a Service with a node's address and the tunnel port, whose endpoint is the hostile pod (CVE-2020-8554).
    fn set_hijack(&self, on: bool) -> anyhow::Result<()> {
        let Some(port) = tunnel_port(self.options.mode) else {
            return Ok(());
        };
        let node = self.cluster.node(1)?;
        let [own, other] = [1, 2].map(|number| self.cluster.node(number));
        let [own, other] = [own?, other?].map(|node| node.addresses.first().copied());
        let (own, other) = own.zip(other).context("the node has no address")?;
        let mut pods = self.cluster.pods.iter();
        let pod = pods.next().and_then(|pod| pod.address_of_family(own));
        let pod = pod.context("the pod has no address of the nodes' family")?;
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
        let script = if on {
            table.as_str()
        } else {
            "delete table inet hijack"
        };
        nft::run_script(&node.namespace, script)
    }

    /// Sets `route_localnet` on the links of pods, as the portmap plugin does.
    fn enable_route_localnet(&self) -> anyhow::Result<()> {
        self.run_for_pod_links(1, "echo 1 > /proc/sys/net/ipv4/conf/$link/route_localnet")
    }

    /// Runs a shell command on a node for every link of a pod. `$link` is the name of the link.
    fn run_for_pod_links(&self, node: usize, command: &str) -> anyhow::Result<()> {
        let script = format!(
            "set -e; for link in $(cd /proc/sys/net/ipv4/conf; ls -d nw[0-9a-f]* nw-br0 2>/dev/null); do {command}; done"
        );
        let namespace = &self.cluster.node(node)?.namespace;
        output(namespace.command("sh").args(["-c", &script])).map(drop)
    }

    /// Runs attacks for `time`, and `meanwhile` in parallel.
    fn attack(
        &mut self,
        attacks: &[&Attack],
        time: Duration,
        meanwhile: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let attackers = [Attacker::Pod, Attacker::ExternalHost];
        let children = attackers.map(|attacker| self.start_attacks(attacks, attacker, time));
        let result = meanwhile(self);
        for (attacker, child) in attackers.into_iter().zip(children) {
            let Some(child) = child? else { continue };
            let output = child.wait_with_output()?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{attacker:?}: {error}");
            let injected: Injected = serde_json::from_slice(&output.stdout)?;
            let mut failed = injected.sent.iter().zip(&injected.errors);
            let failed = failed.find(|(sent, _)| **sent == 0);
            ensure!(failed.is_none(), "{attacker:?} could not send: {failed:?}");
        }
        result?;
        Ok(started.elapsed())
    }

    /// Starts the attacks of one attacker. Returns `None` if there are none.
    fn start_attacks(
        &self,
        attacks: &[&Attack],
        attacker: Attacker,
        time: Duration,
    ) -> anyhow::Result<Option<Child>> {
        let attacks = attacks.iter().filter(|attack| attack.attacker == attacker);
        let injections: Vec<_> = attacks.flat_map(|attack| &attack.injections).collect();
        if injections.is_empty() {
            return Ok(None);
        }
        let probe = self.options.binaries.join("netweft-probe");
        let mut command = self.namespace_of(attacker)?.command(probe);
        command.args(["inject", "--pause", PAUSE_MILLIS, "--time"]);
        command.arg(time.as_millis().to_string());
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start the probe")?;
        let mut input = child
            .stdin
            .take()
            .context("the probe has no standard input")?;
        for injection in injections {
            writeln!(input, "{}", serde_json::to_string(injection)?)?;
        }
        Ok(Some(child))
    }

    fn kill_agents_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        let numbers = (1..=self.cluster.nodes.len()).cycle();
        for number in numbers.take_while(|_| started.elapsed() < time) {
            self.cluster.node_mut(number)?.0.kill_agent()?;
            self.cluster.start_agent(number)?;
            std::thread::sleep(KILL_INTERVAL);
        }
        Ok(())
    }

    /// The sums of the packet counters of all observed namespaces, by port.
    fn delivered_packets(&self) -> anyhow::Result<BTreeMap<u16, u64>> {
        let mut sums = BTreeMap::new();
        for (namespace, _) in self.observed_namespaces() {
            for (port, packets) in packet_counters::packets_by_port(namespace)? {
                *sums.entry(port).or_default() += packets;
            }
        }
        Ok(sums)
    }

    /// The size of an attack's effect: the number of packets or entries.
    fn effect(&self, attack: &Attack, delivered: &BTreeMap<u16, u64>) -> anyhow::Result<u64> {
        let packets_to = |port: u16| delivered.get(&port).copied().unwrap_or_default();
        Ok(match attack.effect {
            Effect::Datagram(port) => packets_to(port),
            Effect::RouterAdvertisement => packets_to(ROUTER_ADVERTISEMENT),
            Effect::Neighbours => {
                let entries = self.cluster.node(1)?.namespace.ip("-6 neighbour show")?;
                let forged = entries
                    .lines()
                    .filter(|line| line.starts_with("fe80::bad:"));
                u64::try_from(forged.count())?
            }
            Effect::NeighbourEntry(address) => {
                let own = packets::text(self.namespace_of(Attacker::Pod)?.mac("eth0")?);
                let namespace = &self.cluster.node(1)?.namespace;
                let entry = namespace.ip(&format!("neighbour show {address} dev nw-br0"))?;
                u64::from(entry.contains(&own))
            }
            Effect::FdbEntry(mac) => {
                let mut command = self.cluster.node(1)?.namespace.command("bridge");
                let entries = output(command.args(["fdb", "show", "br", "nw-br0"]))?;
                u64::from(entries.contains(&packets::text(mac)))
            }
        })
    }

    fn check_no_effect(&self, attacks: &[Attack], when: &str) -> anyhow::Result<()> {
        let delivered = self.delivered_packets()?;
        for attack in attacks {
            let effect = self.effect(attack, &delivered)?;
            ensure!(
                effect == 0,
                "{} {when}: the attack succeeded, effect {effect}",
                attack.name
            );
        }
        println!("{} attacks {when}: none succeeded", attacks.len());
        Ok(())
    }

    /// No node has a default route from a router advertisement.
    fn check_no_advertised_routes(&self) -> anyhow::Result<()> {
        for node in &self.cluster.nodes {
            let routes = node.namespace.ip("-6 route show default proto ra")?;
            ensure!(routes.is_empty(), "{} has accepted {routes}", node.name);
        }
        Ok(())
    }

    /// Checks that each attack succeeds without the filter, so that the previous checks were effective.
    fn check_attacks_without_filter(&mut self, attacks: &[Attack]) -> anyhow::Result<()> {
        self.set_hijack(false)?;
        for number in 1..=self.cluster.nodes.len() {
            self.cluster.node_mut(number)?.0.kill_agent()?;
            let node = self.cluster.node(number)?;
            node.namespace.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
            let listed = output(
                node.namespace
                    .command("nft")
                    .args(["list", "table", "inet", "netweft"]),
            )?;
            let chains = FILTER_CHAINS.iter();
            let exists = |chain: &&&str| listed.contains(&format!("chain {chain} {{"));
            let flush = chains
                .filter(exists)
                .map(|chain| format!("flush chain inet netweft {chain}\n"));
            let flush: String = flush.collect();
            let bridge = match self.options.pod_interface {
                PodInterface::Bridge => {
                    node.namespace
                        .ip("link set nw-br0 type bridge no_linklocal_learn 0")?;
                    "flush chain bridge netweft prerouting\n"
                }
                PodInterface::Routed => "",
            };
            nft::run_script(&node.namespace, &(flush + bridge))?;
            self.run_for_pod_links(number, "echo 0 > /proc/sys/net/ipv4/conf/$link/rp_filter")?;
        }
        // Attacks that redirect a neighbour's packets run last, because they also redirect the packets of other attacks.
        let (last, first): (Vec<_>, Vec<_>) = attacks
            .iter()
            .partition(|attack| attack.redirects_neighbour);
        for attacks in [first, last] {
            self.attack(&attacks, UNFILTERED_TIME, |_| Ok(()))?;
        }
        let delivered = self.delivered_packets()?;
        let effective = attacks.iter();
        for attack in effective.filter(|attack| attack.succeeds_without_filter) {
            let effect = self.effect(attack, &delivered)?;
            let minimum = match attack.effect {
                Effect::Neighbours => u64::from(NEIGHBOURS / 2),
                Effect::Datagram(_)
                | Effect::RouterAdvertisement
                | Effect::NeighbourEntry(_)
                | Effect::FdbEntry(_) => 1,
            };
            ensure!(
                effect >= minimum,
                "{} has no effect without the filter, so the filter was not tested",
                attack.name
            );
        }
        println!("without the filter the attacks succeed");
        self.check_hijack_without_filter()
    }

    /// Checks that the Service on the tunnel port takes the packets of the tunnel without the filter.
    fn check_hijack_without_filter(&self) -> anyhow::Result<()> {
        // The relay keeps its flow, which conntrack has tracked since before the Service existed.
        if self.options.mode != LabMode::Vxlan {
            return Ok(());
        }
        self.set_hijack(true)?;
        let pod_on = |node: &str| self.cluster.pods.iter().find(|pod| pod.node == node);
        let (pod, other) = pod_on("node-1")
            .zip(pod_on("node-2"))
            .context("the lab has no pods on two nodes")?;
        let answers = pod
            .namespace
            .ping(&self.options.binaries, &other.addresses)?;
        ensure!(
            answers.iter().all(|answer| answer.received == 0),
            "a Service on the tunnel's port has no effect without the filter, so the filter was not tested"
        );
        Ok(())
    }
}
