//! The two pools of the simulation, of one family each: exactly so many blocks, so that some have to be given twice.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use kube::{Api, Client};
use netweft_crds::IPPool;
use serde_json::json;

use crate::objects::create;

/// Name, first address and length of a block's prefix.
const POOLS: [(&str, &str, u8); 2] = [("sim-v4", "10.64.0.0", 26), ("sim-v6", "fd00:10:64::", 122)];

/// Their names.
pub fn names() -> impl Iterator<Item = &'static str> {
    POOLS.into_iter().map(|(name, ..)| name)
}

/// Creates the pools with `count` blocks each that can be assigned; returns these.
pub async fn make(admin: &Client, count: usize) -> BTreeMap<String, BTreeSet<IpNet>> {
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

/// The shortest range that has so many blocks, and what of it is too much.
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
