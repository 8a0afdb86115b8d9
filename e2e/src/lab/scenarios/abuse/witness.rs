//! Which attacks arrive: a table of nftables in every namespace counts datagrams by their destination port, which is the attack's
//! number, and router advertisements.

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::Value;

use crate::harness::command::{feed, output};
use crate::lab::topology::namespace::Namespace;

/// The port of the first attack.
pub const FIRST_PORT: u16 = 40000;
/// Counted as the port of router advertisements.
pub const ADVERTISEMENT: u16 = 1;

/// Where packets count as delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Whatever comes in by a link: pods and hosts that are no nodes.
    Link,
    /// What sockets of the host get: nodes, which see packets also that they drop.
    Host,
}

/// Begins to count in a namespace.
///
/// # Errors
/// nft refuses.
pub fn post(space: &Namespace, place: Place) -> anyhow::Result<()> {
    let hook = match place {
        Place::Link => "prerouting",
        Place::Host => "input",
    };
    let last = FIRST_PORT + 999;
    let table = format!(
        "table inet witness {{
            set seen {{ type inet_service; flags dynamic; size 2000; counter; }}
            counter advertisements {{ }}
            chain seen {{
                type filter hook {hook} priority raw;
                udp dport {FIRST_PORT}-{last} update @seen {{ udp dport }}
                iifname \"nw*\" icmpv6 type nd-router-advert counter name advertisements
            }}
        }}"
    );
    feed(space.command("nft").args(["-f", "-"]), &table)
}

/// Numbers of packets by port. Those without a packet are missing.
///
/// # Errors
/// nft does not tell.
pub fn seen(space: &Namespace) -> anyhow::Result<BTreeMap<u16, u64>> {
    let list = ["-j", "list", "table", "inet", "witness"];
    let listed: Value = serde_json::from_str(&output(space.command("nft").args(list))?)?;
    let objects = listed.pointer("/nftables").and_then(Value::as_array);
    let objects = objects.context("nft lists objects")?;
    let mut seen = BTreeMap::new();
    for object in objects {
        let elements = object.pointer("/set/elem").and_then(Value::as_array);
        for element in elements.into_iter().flatten() {
            let port = element.pointer("/elem/val").and_then(Value::as_u64);
            let packets = element.pointer("/elem/counter/packets");
            let packets = packets.and_then(Value::as_u64);
            let (port, packets) = port.zip(packets).context("an element has a counter")?;
            seen.insert(u16::try_from(port)?, packets);
        }
        let advertisements = object.pointer("/counter/packets").and_then(Value::as_u64);
        if let Some(packets) = advertisements.filter(|packets| *packets > 0) {
            seen.insert(ADVERTISEMENT, packets);
        }
    }
    Ok(seen)
}
