//! The node's own addresses in its blocks, and that no pod has such an address at the same time.
//!
//! The property simulates one node: blocks are assigned and withdrawn, the pool is edited, pods start and end, and the agent makes
//! its three steps (read, change the kernel, write `node.json`) with other steps between them. Agent and plugin have this version
//! or an earlier one, which used the first usable address of the oldest block and reserved no other.

use netweft_cni::attachment::Attachment;
use netweft_cni::build_attachment::{AttachmentRequest, build_attachment};
use netweft_cni::env::AttachmentId as Container;
use netweft_cni::ipam::{self, Allocation, PodRequest};
use proptest::prelude::*;

use crate::desired::tests::*;
use crate::pods::{Records, Reservation, Reservations};

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
fn tunnel_address_of_pod_is_not_added_to_node() {
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
    let destinations: Vec<IpAddr> = targets
        .flat_map(|target| target.probes.iter().map(|probe| probe.to))
        .collect();
    assert!(
        destinations.contains(&ip("10.244.0.65")),
        "{destinations:?}"
    );
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
    Assign(usize),
    Withdraw(usize),
    /// The NodeSubnet is deleted, if no pod has an address of it.
    Delete(usize),
    Reserve(usize),
    Interface(bool),
    Add {
        earlier: bool,
        start: u8,
    },
    AddEnds,
    Del(usize),
    /// One of the three steps of the agent.
    Agent,
    /// All three steps.
    Sync,
    Restart {
        earlier: bool,
    },
    DiskFull(bool),
    /// Another program deletes `node.json`.
    DeleteConfig,
}

fn any_step() -> impl Strategy<Value = Step> {
    let block = 0..BLOCKS.len();
    prop_oneof![
        2 => block.clone().prop_map(Step::Assign),
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
        1 => Just(Step::DeleteConfig),
    ]
}

/// The desired state that the agent has computed and not applied yet.
enum PendingWork {
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
    work: Option<PendingWork>,
    disk_full: bool,
    /// Whether an agent of this version was the last to change the kernel.
    checked: bool,
}

impl Node {
    /// A node that an earlier version has programmed.
    fn of_earlier_version(bridged: bool) -> Self {
        let mut node = Self {
            bridged,
            earlier_agent: true,
            ..Self::default()
        };
        for step in [Step::Assign(0), Step::Assign(1), Step::Sync] {
            node.apply(step);
        }
        node
    }

    fn apply(&mut self, step: Step) {
        let block = |n: usize| BLOCKS[n].parse::<IpNet>().unwrap();
        match step {
            Step::Assign(n) => {
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
                // The operator deletes a NodeSubnet after the agent has acknowledged its removal, for which the agent acquires the
                // plugin's lock.
                let pools = self.config.iter().flat_map(|config| &config.pools);
                let mut blocks = pools.flat_map(|pool| &pool.blocks);
                let allocatable = blocks.any(|it| *it == block(n));
                if empty && !allocatable && self.adding.is_none() {
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
                        let previous = self.records.insert(address.ip, Ok(attachment.clone()));
                        assert!(previous.is_none(), "{} twice", address.ip);
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
            Step::DeleteConfig => self.config = None,
        }
    }

    /// Selects an address under the lock; the record is written when the ADD ends.
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
        inputs.serving_pools = vec!["default-v4".into()];
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
            // A starting agent waits for the lock.
            None if !self.earlier_agent
                && !self.reservations.was_locked()
                && self.adding.is_some() => {}
            None => {
                let (kernel, config) = if self.earlier_agent {
                    self.earlier_work()
                } else {
                    self.present_work()
                };
                self.work = Some(PendingWork::Kernel(kernel, config));
            }
            Some(PendingWork::Kernel(kernel, config)) => {
                self.kernel = kernel;
                self.checked = !self.earlier_agent;
                self.work = Some(PendingWork::File(config));
            }
            Some(PendingWork::File(config)) => {
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
            .update(config, Default::default(), |_| no_add);
        let mut inputs = self.inputs();
        inputs.pods = PodState::of(&self.records, config, |ip| self.reservations.of(ip));
        inputs.pods.pending = &inputs.pods.pending - &self.kernel;
        let desired = desired(&inputs, &facts());
        let own = desired.kernel.addresses.keys().map(|key| key.net.addr());
        (own.collect(), desired.plugin)
    }

    /// The computation of the earlier version.
    fn earlier_work(&self) -> (BTreeSet<IpAddr>, NodeConfig) {
        let pinned = PodState::of(&self.records, None, |_| Reservation::Effective).gateways;
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

/// The address that the plugin of the earlier version selects, which excludes no tunnel address.
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
        let mut node = Node::of_earlier_version(bridged);
        for step in steps {
            node.apply(step);
            let pods: BTreeSet<IpAddr> = node.records.keys().copied().collect();
            let both: Vec<_> = node.kernel.intersection(&pods).collect();
            prop_assert!(!node.checked || both.is_empty(), "{both:?} after {step:?}");
        }
    }
}
