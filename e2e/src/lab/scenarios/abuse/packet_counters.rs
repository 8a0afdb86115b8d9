//! Detection of delivered packets: an nftables table in every namespace counts router advertisements, and datagrams by destination port.
//! Every attack has a separate port.

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::Value;

use crate::harness::command::output;
use crate::lab::topology::namespace::Namespace;
use crate::lab::topology::nft;

/// The port of the first attack.
pub const FIRST_PORT: u16 = 40000;
/// The key of router advertisements in the result of [`packets_by_port`].
pub const ROUTER_ADVERTISEMENT: u16 = 1;

/// The hook at which packets count as delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountAt {
    /// All received packets: for pods and external hosts.
    Prerouting,
    /// Packets to local sockets: for nodes, which receive also the packets that they drop.
    Input,
}

/// Creates the counters in a namespace.
///
/// # Errors
/// nft cannot be run or rejects the table.
pub fn create(namespace: &Namespace, count_at: CountAt) -> anyhow::Result<()> {
    let hook = match count_at {
        CountAt::Prerouting => "prerouting",
        CountAt::Input => "input",
    };
    let last = FIRST_PORT + 999;
    let table = format!(
        "table inet packet_counters {{
            set delivered {{ type inet_service; flags dynamic; size 2000; counter; }}
            counter advertisements {{ }}
            chain count {{
                type filter hook {hook} priority raw;
                udp dport {FIRST_PORT}-{last} update @delivered {{ udp dport }}
                iifname \"nw*\" icmpv6 type nd-router-advert counter name advertisements
            }}
        }}"
    );
    nft::run_script(namespace, &table)
}

/// The numbers of packets by destination port, without ports that received none.
///
/// # Errors
/// nft cannot be run, or its output is invalid.
pub fn packets_by_port(namespace: &Namespace) -> anyhow::Result<BTreeMap<u16, u64>> {
    let list = ["-j", "list", "table", "inet", "packet_counters"];
    let listed: Value = serde_json::from_str(&output(namespace.command("nft").args(list))?)?;
    let objects = listed.pointer("/nftables").and_then(Value::as_array);
    let objects = objects.context("the output of nft has no list")?;
    let mut packets_by_port = BTreeMap::new();
    for object in objects {
        let elements = object.pointer("/set/elem").and_then(Value::as_array);
        for element in elements.into_iter().flatten() {
            let port = element.pointer("/elem/val").and_then(Value::as_u64);
            let packets = element.pointer("/elem/counter/packets");
            let packets = packets.and_then(Value::as_u64);
            let (port, packets) = port.zip(packets).context("an element has no counter")?;
            packets_by_port.insert(u16::try_from(port)?, packets);
        }
        let advertisements = object.pointer("/counter/packets").and_then(Value::as_u64);
        if let Some(packets) = advertisements.filter(|packets| *packets > 0) {
            packets_by_port.insert(ROUTER_ADVERTISEMENT, packets);
        }
    }
    Ok(packets_by_port)
}
