//! The node's own addresses in its blocks, and that no pod has one of them at the same time.
//!
//! The property plays one node: the operator gives and takes blocks, the pool is edited, pods come and go, and the agent does its
//! three steps (read, change the kernel, write `node.json`) with anything in between. Agent and plugin are of this version or of
//! an earlier one, which took the first usable address of the oldest block and reserved no other.

use netweft_cni::attachment::Attachment;
use netweft_cni::build_attachment::{AttachmentRequest, build_attachment};
use netweft_cni::env::AttachmentId as Container;
use netweft_cni::ipam::{self, Allocation, PodRequest};
use proptest::prelude::*;

use crate::desired::tests::*;
use crate::pods::{Hold, Records, Reservations};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn with_blocks(blocks: &[&str]) -> Inputs {
    let own = |cidr: &&str| OwnBlock {
        cidr: cidr.parse().unwrap(),
        pool: "default-v4".into(),
    };
    Inputs {
        blocks: blocks.iter().map(own).collect(),
        ..inputs()
    }
}

/// The addresses on the tunnel's link.
fn on_tunnel(inputs: &Inputs) -> Vec<String> {
    let addresses = desired(inputs, &facts()).kernel.addresses;
    let on_tunnel = addresses
        .keys()
        .filter(|key| key.link.as_str() == "nw-vx4096");
    on_tunnel.map(|key| key.net.addr().to_string()).collect()
}

#[test]
fn tunnel_address_of_oldest_block_ignores_reserved_ranges() {
    let mut inputs = with_blocks(&["10.244.3.64/26", "10.244.0.0/26"]);
    assert_eq!(on_tunnel(&inputs), ["10.244.3.65"]);
    for reserved in ["10.244.3.64/31", "10.244.3.65/32", "10.244.0.0/16"] {
        let pool = inputs.pools.get_mut("default-v4").unwrap();
        pool.reserved = vec![reserved.parse().unwrap()];
        assert_eq!(on_tunnel(&inputs), ["10.244.3.65"], "{reserved}");
    }
}

#[test]
fn tunnel_address_of_every_block_is_reserved() {
    let inputs = with_blocks(&["10.244.3.64/26", "10.244.0.0/26"]);
    let reserved = &desired(&inputs, &facts()).plugin.pools[0].reserved;
    for address in ["10.244.3.65/32", "10.244.0.1/32"] {
        assert!(reserved.contains(&address.parse().unwrap()), "{address}");
    }
}

#[test]
fn tunnel_address_used_by_pod_is_left_to_pod() {
    let mut inputs = with_blocks(&["10.244.3.64/26", "10.244.0.0/26"]);
    inputs.pods.addresses = [ip("10.244.3.65")].into();
    assert_eq!(on_tunnel(&inputs), ["10.244.0.1"]);
    assert_eq!(notes(&desired(&inputs, &facts())), [""; 0]);
    inputs.pods.addresses.insert(ip("10.244.0.1"));
    assert_eq!(on_tunnel(&inputs), [""; 0]);
    let desired = desired(&inputs, &facts());
    let notes = notes(&desired);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with(
        "a pod has the address 10.244.3.65, which is the node's own address in block 10.244.3.64/26"
    ));
}

#[test]
fn probes_target_tunnel_address_ignoring_reserved_ranges() {
    let mut inputs = inputs();
    let mut standby = inputs.modes[0].clone();
    standby.transport = Transport::Direct.into();
    standby.standby_pools = std::mem::take(&mut standby.pools);
    inputs.modes.push(standby);
    inputs.pools.get_mut("default-v4").unwrap().reserved = vec!["10.244.0.64/31".parse().unwrap()];
    let probes = desired(&inputs, &facts()).probes;
    let targets = probes
        .iter()
        .flat_map(|probe_plan| probe_plan.targets.values());
    let asked: Vec<IpAddr> = targets
        .flat_map(|target| target.probes.iter().map(|probe| probe.to))
        .collect();
    assert!(asked.contains(&ip("10.244.0.65")), "{asked:?}");
}

const BLOCKS: [&str; 3] = ["10.244.0.0/29", "10.244.0.8/29", "10.244.0.16/29"];
const RESERVED: [&[&str]; 5] = [
    &[],
    &["10.244.0.1/32"],
    &["10.244.0.8/30"],
    &["10.244.0.0/30", "10.244.0.17/32"],
    &["10.244.0.0/28"],
];

#[derive(Clone, Copy, Debug)]
enum Step {
    Give(usize),
    Withdraw(usize),
    /// The NodeSubnet is deleted, if no pod is in it.
    Delete(usize),
    Reserve(usize),
    Interface(bool),
    Add {
        earlier: bool,
        start: u8,
    },
    AddEnds,
    Del(usize),
    /// One step of the agent's three.
    Agent,
    /// All three.
    Sync,
    Restart {
        earlier: bool,
    },
    DiskFull(bool),
    /// Somebody deletes `node.json`.
    Forget,
}

fn any_step() -> impl Strategy<Value = Step> {
    let block = 0..BLOCKS.len();
    prop_oneof![
        2 => block.clone().prop_map(Step::Give),
        2 => block.clone().prop_map(Step::Withdraw),
        1 => block.prop_map(Step::Delete),
        2 => (0..RESERVED.len()).prop_map(Step::Reserve),
        1 => any::<bool>().prop_map(Step::Interface),
        4 => (any::<bool>(), 0..8_u8).prop_map(|(earlier, start)| Step::Add { earlier, start }),
        6 => Just(Step::AddEnds),
        1 => (0..8_usize).prop_map(Step::Del),
        6 => Just(Step::Agent),
        4 => Just(Step::Sync),
        2 => any::<bool>().prop_map(|earlier| Step::Restart { earlier }),
        1 => any::<bool>().prop_map(Step::DiskFull),
        1 => Just(Step::Forget),
    ]
}

/// What the agent has computed and not yet carried out.
enum Work {
    Kernel(BTreeSet<IpAddr>, NodeConfig),
    File(NodeConfig),
}

#[derive(Default)]
struct Node {
    listed: Vec<IpNet>,
    withdrawn: Vec<IpNet>,
    reserved: Vec<IpNet>,
    bridged: bool,
    config: Option<NodeConfig>,
    records: Records,
    adding: Option<Attachment>,
    containers: usize,
    kernel: BTreeSet<IpAddr>,
    earlier_agent: bool,
    reservations: Reservations,
    work: Option<Work>,
    disk_full: bool,
    /// Whether an agent of this version was the last to change the kernel.
    checked: bool,
}

impl Node {
    /// One on which an earlier version has been at work.
    fn earlier(bridged: bool) -> Self {
        let mut node = Self {
            bridged,
            earlier_agent: true,
            ..Self::default()
        };
        for step in [Step::Give(0), Step::Give(1), Step::Sync] {
            node.take(step);
        }
        node
    }

    fn take(&mut self, step: Step) {
        let block = |n: usize| BLOCKS[n].parse::<IpNet>().unwrap();
        match step {
            Step::Give(n) => {
                self.withdrawn.retain(|cidr| *cidr != block(n));
                if !self.listed.contains(&block(n)) {
                    self.listed.push(block(n));
                }
            }
            Step::Withdraw(n) => {
                if self.listed.contains(&block(n)) {
                    self.listed.retain(|cidr| *cidr != block(n));
                    self.withdrawn.push(block(n));
                }
            }
            Step::Delete(n) => {
                let empty = !self.records.keys().any(|ip| block(n).contains(ip));
                // The operator deletes what the agent has acknowledged to offer no more, which takes the plugin's lock.
                let offered = self.config.iter().flat_map(|config| &config.pools);
                let offered = offered
                    .flat_map(|pool| &pool.blocks)
                    .any(|it| *it == block(n));
                if empty && !offered && self.adding.is_none() {
                    self.withdrawn.retain(|cidr| *cidr != block(n));
                }
            }
            Step::Reserve(n) => {
                self.reserved = RESERVED[n].iter().map(|net| net.parse().unwrap()).collect();
            }
            Step::Interface(bridged) => self.bridged = bridged,
            Step::Add { earlier, start } => self.begin_add(earlier, start),
            Step::AddEnds => {
                if let Some(attachment) = self.adding.take() {
                    for address in &attachment.addresses {
                        let known = self.records.insert(address.ip, Ok(attachment.clone()));
                        assert!(known.is_none(), "{} twice", address.ip);
                    }
                }
            }
            Step::Del(n) => {
                if let Some(ip) = self.records.keys().nth(n).copied() {
                    self.records.remove(&ip);
                }
            }
            Step::Agent => self.agent(),
            Step::Sync => (0..3).for_each(|_| self.agent()),
            Step::Restart { earlier } => {
                self.earlier_agent = earlier;
                self.reservations = Reservations::default();
                self.work = None;
            }
            Step::DiskFull(full) => self.disk_full = full,
            Step::Forget => self.config = None,
        }
    }

    /// Chooses under the lock; the record is written when the ADD ends.
    fn begin_add(&mut self, earlier: bool, start: u8) {
        let Some(config) = self.config.clone().filter(|_| self.adding.is_none()) else {
            return;
        };
        let taken: BTreeSet<IpAddr> = self.records.keys().copied().collect();
        let choice = if earlier {
            earlier_choice(&config, &taken, start)
        } else {
            let after = |block: &IpNet| {
                (
                    *block,
                    block.hosts().nth(start.into()).unwrap_or(block.addr()),
                )
            };
            let blocks = config.pools.iter().flat_map(|pool| &pool.blocks);
            let last = blocks.map(after).collect();
            let choices = ipam::allocate(&config, PodRequest::default(), &taken, &last);
            choices.ok().and_then(|choices| choices.into_iter().next())
        };
        self.containers += 1;
        let request = AttachmentRequest {
            owner: Container {
                container_id: format!("c{}", self.containers),
                if_name: "eth0".parse().unwrap(),
            },
            netns_path: String::new(),
            pod: Default::default(),
        };
        self.adding = choice.and_then(|choice| build_attachment(request, &[choice]).ok());
    }

    fn inputs(&self) -> Inputs {
        let mut inputs = inputs();
        inputs.serving = vec!["default-v4".into()];
        inputs.withdrawn = self.withdrawn.clone();
        let own = |cidr: &IpNet| OwnBlock {
            cidr: *cidr,
            pool: "default-v4".into(),
        };
        inputs.blocks = self.listed.iter().map(own).collect();
        inputs.remote.clear();
        let pool = inputs.pools.get_mut("default-v4").unwrap();
        pool.reserved = self.reserved.clone();
        if self.bridged {
            pool.pod_interface = PodInterface::Bridge;
        }
        inputs
    }

    fn agent(&mut self) {
        match self.work.take() {
            // An agent that starts waits for the lock.
            None if !self.earlier_agent && !self.reservations.begun() && self.adding.is_some() => {}
            None => {
                let (kernel, config) = if self.earlier_agent {
                    self.earlier_work()
                } else {
                    self.present_work()
                };
                self.work = Some(Work::Kernel(kernel, config));
            }
            Some(Work::Kernel(kernel, config)) => {
                self.kernel = kernel;
                self.checked = !self.earlier_agent;
                self.work = Some(Work::File(config));
            }
            Some(Work::File(config)) => {
                if !self.disk_full {
                    self.config = Some(config);
                }
            }
        }
    }

    fn present_work(&mut self) -> (BTreeSet<IpAddr>, NodeConfig) {
        let config = self.config.as_ref();
        let no_add = self.adding.is_none();
        self.reservations
            .observe(config, Default::default(), |_| no_add);
        let mut inputs = self.inputs();
        inputs.pods = PodState::of(&self.records, config, |ip| self.reservations.hold(ip));
        inputs.pods.unsettled = &inputs.pods.unsettled - &self.kernel;
        let desired = desired(&inputs, &facts());
        let ours = desired.kernel.addresses.keys().map(|key| key.net.addr());
        (ours.collect(), desired.plugin)
    }

    /// As the earlier agent did it.
    fn earlier_work(&self) -> (BTreeSet<IpAddr>, NodeConfig) {
        let pinned = PodState::of(&self.records, None, |_| Hold::Settled).gateways;
        let first = |block: &IpNet| {
            let reserved = |ip: &IpAddr| self.reserved.iter().any(|net| net.contains(ip));
            block.hosts().find(|ip| !reserved(ip))
        };
        let gateway = |block: &IpNet| pinned.get(block).copied().or_else(|| first(block));
        let mut plugin = desired(&self.inputs(), &facts()).plugin;
        let mut kernel: BTreeSet<IpAddr> =
            self.listed.iter().find_map(gateway).into_iter().collect();
        for pool in &mut plugin.pools {
            pool.reserved = self.reserved.clone();
            if let Some(bridge) = &mut pool.bridge {
                let gateways = self
                    .listed
                    .iter()
                    .filter_map(|block| Some((*block, gateway(block)?)));
                bridge.gateways = gateways.collect();
                kernel.extend(bridge.gateways.values());
            }
            pool.reserved
                .extend(kernel.iter().copied().map(IpNet::from));
        }
        kernel.extend(pinned.values());
        (kernel, plugin)
    }
}

/// What a plugin chose that knew no tunnel address.
fn earlier_choice<'a>(
    config: &'a NodeConfig,
    taken: &BTreeSet<IpAddr>,
    start: u8,
) -> Option<Allocation<'a>> {
    let pool = config.pools.first()?;
    pool.blocks.iter().find_map(|block| {
        let free =
            |ip: &IpAddr| !taken.contains(ip) && !pool.reserved.iter().any(|net| net.contains(ip));
        let mut hosts: Vec<IpAddr> = block.hosts().collect();
        let count = hosts.len();
        hosts.rotate_left(usize::from(start) % count);
        let ip = hosts.into_iter().find(free)?;
        Some(Allocation {
            ip,
            block: *block,
            pool,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn address_is_never_on_interface_and_in_attachment(
        bridged in any::<bool>(),
        steps in prop::collection::vec(any_step(), 1..120),
    ) {
        let mut node = Node::earlier(bridged);
        for step in steps {
            node.take(step);
            let pods: BTreeSet<IpAddr> = node.records.keys().copied().collect();
            let both: Vec<_> = node.kernel.intersection(&pods).collect();
            prop_assert!(!node.checked || both.is_empty(), "{both:?} after {step:?}");
        }
    }
}
