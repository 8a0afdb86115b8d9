//! The two pools of the simulation, one of each family. They have an exact number of blocks, so that some blocks must
//! be assigned again.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use kube::{Api, Client};
use netweft_crds::IPPool;
use serde_json::json;

use crate::objects::create;

/// Name, first address and prefix length of the blocks.
const POOLS: [(&str, &str, u8); 2] = [("sim-v4", "10.64.0.0", 26), ("sim-v6", "fd00:10:64::", 122)];

/// Names of the pools.
pub fn names() -> impl Iterator<Item = &'static str> {
    POOLS.into_iter().map(|(name, ..)| name)
}

/// Creates the pools with `count` assignable blocks each. Returns these blocks.
pub async fn create_all(admin: &Client, count: usize) -> BTreeMap<String, BTreeSet<IpNet>> {
    let pools: Api<IPPool> = Api::all(admin.clone());
    let mut blocks = BTreeMap::new();
    for (name, first, block) in POOLS {
        let (cidr, reserved) = range(first, block, count);
        let value = json!({
            "apiVersion": "netweft.io/v1alpha1", "kind": "IPPool", "metadata": { "name": name },
            "spec": { "cidr": cidr, "blockSize": block, "networkMode": "default", "reserved": reserved },
        });
        create(&pools, value).await;
        let all = cidr.subnets(block).unwrap();
        blocks.insert(name.to_owned(), all.take(count).collect());
    }
    blocks
}

/// The smallest range with at least `count` blocks, and the surplus part of it.
fn range(first: &str, block: u8, count: usize) -> (IpNet, Vec<IpNet>) {
    let total = count.next_power_of_two();
    let longer = |blocks: usize| block - u8::try_from(blocks.ilog2()).unwrap();
    let cidr = IpNet::new(first.parse().unwrap(), longer(total)).unwrap();
    let (mut reserved, mut next) = (Vec::new(), count);
    while next < total {
        let blocks = 1 << next.trailing_zeros();
        let mut aligned = cidr.subnets(longer(blocks)).unwrap();
        reserved.push(aligned.nth(next / blocks).unwrap());
        next += blocks;
    }
    (cidr, reserved)
}

#[test]
fn unreserved_range_has_exactly_requested_blocks() {
    for (_, first, block) in POOLS {
        for count in [1, 2, 3, 8, 100, 341] {
            let (cidr, reserved) = range(first, block, count);
            let free = cidr.subnets(block).unwrap();
            let free = free.filter(|block| !reserved.iter().any(|range| range.contains(block)));
            assert_eq!(free.count(), count, "{cidr} {reserved:?}");
        }
    }
}
