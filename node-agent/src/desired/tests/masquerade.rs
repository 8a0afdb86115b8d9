//! The nftables table.

use crate::desired::nft::unmasqueraded;
use crate::desired::tests::*;

#[test]
fn nft_table_of_pool_matches_snapshot() {
    insta::assert_snapshot!(desired(&inputs(), &facts()).nft);
}

#[test]
fn pool_without_nat_is_excluded_from_masquerade_both_ways() {
    let mut inputs = inputs();
    inputs.pools.insert(
        "public".into(),
        Pool {
            nat_outgoing: false,
            ..pool("203.0.113.0/24")
        },
    );
    let nft = desired(&inputs, &facts()).nft;
    assert!(!nft.contains("saddr 203.0.113.0/24"));
    assert!(nft.contains("elements = { 10.244.0.0/16, 203.0.113.0/24 }"));
}

#[test]
fn tunnel_address_replaces_other_node_sources_in_tunnel() {
    let mut inputs = inputs();
    for nat_outgoing in [true, false] {
        for pool in inputs.pools.values_mut() {
            pool.nat_outgoing = nat_outgoing;
        }
        let nft = desired(&inputs, &facts()).nft;
        let rule = "oifname \"nw-vx4096\" ip saddr != @pools_v4 fib saddr type local masquerade";
        assert!(nft.contains(rule), "{nft}");
        assert!(
            !nft.contains("ip6 saddr != @pools_v6"),
            "no IPv6 pool: {nft}"
        );
    }
}

#[test]
fn nft_table_has_no_nat_chain_without_masquerade_and_tunnels() {
    let mut inputs = inputs();
    inputs.modes[0].transport = Transport::Direct.into();
    for pool in inputs.pools.values_mut() {
        pool.nat_outgoing = false;
    }
    let nft = desired(&inputs, &facts()).nft;
    assert!(
        nft.contains("chain prerouting") && !nft.contains("type nat"),
        "{nft}"
    );
}

#[test]
fn missing_nftables_message_names_pools_of_this_node() {
    let mut inputs = inputs();
    let elsewhere = pool("10.9.0.0/16");
    inputs.pools.insert("elsewhere".into(), elsewhere);
    let problem = unmasqueraded(&inputs).unwrap();
    assert!(
        problem
            .message
            .contains("pods of IPPool default-v4 are not masqueraded"),
        "{problem}"
    );
    // Pods may still have addresses of a withdrawn block.
    inputs.withdrawn.push("10.9.0.0/26".parse().unwrap());
    let problem = unmasqueraded(&inputs).unwrap();
    assert!(
        problem
            .message
            .contains("pods of IPPools default-v4, elsewhere are"),
        "{problem}"
    );
    inputs.blocks.clear();
    inputs.withdrawn.clear();
    assert_eq!(unmasqueraded(&inputs), None);
}

/// nft itself parses the table.
#[test]
fn nft_accepts_rendered_table() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("nft")
        .args(["-c", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(desired(&inputs(), &facts()).nft.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}
