//! The objects of a node: pools and blocks of both families, for both pod interfaces.

/// The pools of a node: one per pod interface and family.
#[derive(Clone, Copy, Debug)]
pub struct Pools {
    kinds: &'static [&'static str],
    pub families: Families,
}

/// The address families of pods and nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    Ipv4,
    Ipv6,
    Both,
}

pub const FAMILIES: [Families; 3] = [Families::Ipv4, Families::Ipv6, Families::Both];
pub const ROUTED: Pools = Pools {
    kinds: &["routed"],
    families: Families::Ipv4,
};
pub const BRIDGED: Pools = Pools {
    kinds: &["bridge"],
    ..ROUTED
};
pub const BOTH: Pools = Pools {
    kinds: &["bridge", "routed"],
    ..ROUTED
};

impl Pools {
    pub const fn of(self, families: Families) -> Self {
        Self { families, ..self }
    }

    /// The addresses of node number `number`.
    fn node_addresses(self, number: usize) -> String {
        match self.families {
            Families::Ipv4 => format!("ipv4: 192.0.2.{number}"),
            Families::Ipv6 => format!("ipv6: 2001:db8::{number}"),
            Families::Both => format!("ipv4: 192.0.2.{number}, ipv6: 2001:db8::{number}"),
        }
    }

    /// The family of tunnels.
    fn outer(self) -> &'static str {
        match self.families {
            Families::Ipv4 | Families::Both => "ipv4",
            Families::Ipv6 => "ipv6",
        }
    }
}

/// Pools with a block on this node, which is large enough for the leaks of a test, and a block on each of two other nodes.
pub fn objects(pools: Pools) -> Vec<(String, String)> {
    let mut objects = Vec::new();
    let (mut own, mut names) = (Vec::new(), Vec::new());
    for kind in pools.kinds {
        for four in [true, false] {
            let other = if four { Families::Ipv6 } else { Families::Ipv4 };
            if pools.families == other {
                continue;
            }
            let pool = Pool::new(kind, four);
            objects.extend(pool.objects(pools));
            own.push(pool.blocks[0].clone());
            names.push(pool.name);
        }
    }
    objects.push(("network.yaml".into(), network(pools, &own, &names)));
    objects
}

/// The NodeNetwork of the node, with these blocks of these pools.
pub fn network(pools: Pools, blocks: &[String], names: &[String]) -> String {
    let quoted: Vec<String> = blocks.iter().map(|block| format!("\"{block}\"")).collect();
    format!(
        "kind: NodeNetwork\nmetadata: {{name: one, generation: 1}}\nspec: {{addresses: {{{}}}, subnets: [{}], modes: [{{name: default, pools: [{}], transport: {{vxlan: {{}}}}, outerFamily: {}}}]}}",
        pools.node_addresses(1),
        quoted.join(", "),
        names.join(", "),
        pools.outer()
    )
}

struct Pool {
    name: String,
    kind: &'static str,
    cidr: String,
    block_size: u8,
    /// The blocks of the nodes one, two and three.
    blocks: [String; 3],
}

impl Pool {
    fn new(kind: &'static str, four: bool) -> Self {
        let number = if kind == "routed" { 244 } else { 245 };
        if four {
            Self {
                name: kind.to_owned(),
                kind,
                cidr: format!("10.{number}.0.0/16"),
                block_size: 22,
                blocks: [0, 4, 8].map(|third| format!("10.{number}.{third}.0/22")),
            }
        } else {
            Self {
                name: format!("{kind}-six"),
                kind,
                cidr: format!("fd00:{number}::/64"),
                block_size: 118,
                blocks: ["", "400", "800"].map(|last| format!("fd00:{number}::{last}/118")),
            }
        }
    }

    fn objects(&self, pools: Pools) -> Vec<(String, String)> {
        let Self {
            name,
            kind,
            cidr,
            block_size,
            blocks,
        } = self;
        let pool = format!(
            "kind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: \"{cidr}\", blockSize: {block_size}, natOutgoing: true, podInterface: {kind}}}"
        );
        let mut objects = vec![(format!("pool-{name}.yaml"), pool)];
        for (block, (node, number)) in blocks.iter().zip([("one", 1), ("two", 2), ("three", 3)]) {
            let addresses = pools.node_addresses(number);
            let subnet = format!(
                "kind: NodeSubnet\nmetadata: {{name: {name}-{node}}}\nspec: {{cidr: \"{block}\", pool: {name}, node: {node}, nodeAddresses: {{{addresses}}}, state: Active}}"
            );
            objects.push((format!("subnet-{name}-{node}.yaml"), subnet));
        }
        objects
    }
}
