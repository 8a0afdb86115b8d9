//! Dumps of complete tables, repeated until a table has not changed during the dump.

use std::sync::atomic::Ordering;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NetlinkPayload};
use nix::errno::Errno;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::{RouteHeader, RouteMessage};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::decode::{self, Names};
use super::{Failure, Rtnl, next};
use crate::error::Error;
use crate::model::{NetworkState, Port, Route, RouteKey};
use crate::owner::{PROTOCOL_AGENT, PROTOCOL_PLUGIN};

/// Maximum number of attempts for each table.
const ATTEMPTS: u32 = 5;

/// Reads every table. Objects on a link that was created after the links were read are left out: the notification about the
/// link causes another read.
pub(super) async fn read(rtnl: &Rtnl) -> Result<NetworkState, Error> {
    let _dump_lock = rtnl.dump_lock.lock().await;
    let mut state = NetworkState::default();
    let mut names = Names::new();
    let mut ports = Vec::new();
    for message in dump(rtnl, "links", &links()).await? {
        if let RouteNetlinkMessage::NewLink(message) = message
            && let Some((index, name, link)) = decode::link(&message)
        {
            names.insert(index, name.clone());
            ports.extend(decode::port(&message).map(|port| (name.clone(), port)));
            if decode::has_carrier(&message) {
                state.carriers.insert(name.clone());
            }
            state.links.insert(name, link);
        }
    }
    // A bridge can follow its ports in the list.
    for (name, (master, hairpin)) in ports {
        let master = names.get(&master).cloned();
        let port = master.map(|master| (name, Port { master, hairpin }));
        state.ports.extend(port);
    }
    for message in dump(rtnl, "addresses", &addresses()).await? {
        store(&mut state, &message, &names);
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for message in dump(rtnl, "routes", &routes(family)).await? {
            store(&mut state, &message, &names);
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let rules = dump(rtnl, "routing rules", &rules(family)).await?;
        state.policy_routing |= rules.iter().any(decode::is_policy);
    }
    let resolved = stable_dump(
        rtnl,
        "neighbours",
        &neighbours(AddressFamily::Unspec),
        &names,
    )
    .await?;
    let entries = stable_dump(
        rtnl,
        "forwarding entries",
        &neighbours(AddressFamily::Bridge),
        &names,
    )
    .await?;
    Ok(NetworkState {
        neighbours: resolved.neighbours,
        fdb: entries.fdb,
        ..state
    })
}

/// Dumps a table for which the kernel does not detect inconsistent dumps: `neigh_dump_table` and `vxlan_fdb_dump` resume
/// at a count of entries in a hash bucket, so the deletion of one entry can hide another. The dump is repeated until two in
/// succession have the same configured entries.
async fn stable_dump(
    rtnl: &Rtnl,
    what: &'static str,
    request: &RouteNetlinkMessage,
    names: &Names,
) -> Result<NetworkState, Error> {
    let mut previous: Option<NetworkState> = None;
    for _ in 0..=ATTEMPTS {
        let mut state = NetworkState::default();
        for message in dump(rtnl, what, request).await? {
            store(&mut state, &message, names);
        }
        match &previous {
            Some(previous) if agree(previous, &state) => return Ok(state),
            Some(_) => drop(rtnl.interruptions.fetch_add(1, Ordering::Relaxed)),
            None => {}
        }
        previous = Some(state);
    }
    Err(Error::Interrupted {
        what,
        attempts: ATTEMPTS,
    })
}

fn agree(one: &NetworkState, other: &NetworkState) -> bool {
    let configured = |state: &NetworkState| {
        let permanent = state
            .neighbours
            .iter()
            .filter(|(_, neighbour)| neighbour.permanent);
        permanent
            .map(|(key, neighbour)| (key.clone(), neighbour.clone()))
            .collect::<Vec<_>>()
    };
    one.fdb == other.fdb && configured(one) == configured(other)
}

fn store(state: &mut NetworkState, message: &RouteNetlinkMessage, names: &Names) {
    match message {
        RouteNetlinkMessage::NewAddress(message) => {
            if let Some((key, address)) = decode::address(message, names) {
                let special = decode::special_address(message);
                let special = special.map(|special| (key.clone(), special));
                state.special_addresses.extend(special);
                state.addresses.insert(key, address);
            }
        }
        RouteNetlinkMessage::NewNeighbour(message)
            if message.header.family == AddressFamily::Bridge =>
        {
            state.fdb.extend(decode::fdb(message, names));
        }
        RouteNetlinkMessage::NewNeighbour(message) => {
            state.neighbours.extend(decode::neighbour(message, names));
        }
        RouteNetlinkMessage::NewRoute(message) => {
            if let Some((key, route)) = decode::route(message, names) {
                store_route(state, key, route);
            }
        }
        _ => {}
    }
}

/// The kernel can have several routes with one key (`ip route append`). A foreign route has precedence in the model, so that
/// it is a conflict and is not replaced; else the first route, which the kernel uses.
fn store_route(state: &mut NetworkState, key: RouteKey, route: Route) {
    let foreign = ![PROTOCOL_AGENT, PROTOCOL_PLUGIN].contains(&route.protocol);
    if foreign || !state.routes.contains_key(&key) {
        state.routes.insert(key, route);
    }
}

/// One consistent dump of a table. `what` is its name in errors.
async fn dump(
    rtnl: &Rtnl,
    what: &'static str,
    request: &RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    for _ in 0..ATTEMPTS {
        match dump_once(rtnl, request).await {
            Ok(Some(messages)) => return Ok(messages),
            Ok(None) => drop(rtnl.interruptions.fetch_add(1, Ordering::Relaxed)),
            // A table that has never had an entry does not exist (`inet_dump_fib`).
            Err(Failure::Errno(Errno::ENOENT)) => return Ok(Vec::new()),
            // A cancelled dump is still running.
            Err(Failure::Errno(Errno::EBUSY)) => tokio::task::yield_now().await,
            Err(failure) => return Err(failure.into_error(format!("read {what}"))),
        }
    }
    Err(Error::Interrupted {
        what,
        attempts: ATTEMPTS,
    })
}

/// `None` if the table changed during the dump.
async fn dump_once(
    rtnl: &Rtnl,
    request: &RouteNetlinkMessage,
) -> Result<Option<Vec<RouteNetlinkMessage>>, Failure> {
    let mut replies = rtnl.send(request.clone(), NLM_F_DUMP)?;
    let mut messages = Vec::new();
    let mut interrupted = false;
    while let Some(reply) = next(&mut replies).await? {
        interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
        match reply.payload {
            NetlinkPayload::InnerMessage(message) => messages.push(message),
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(Failure::Errno(Errno::from_raw(-done.code)));
            }
            NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(messages)),
            NetlinkPayload::Error(error) => {
                let code = error.code.map_or(0, |code| -code.get());
                return Err(Failure::Errno(Errno::from_raw(code)));
            }
            _ => {}
        }
    }
    Err(Failure::Disconnected)
}

fn links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

fn addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

fn neighbours(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    RouteNetlinkMessage::GetNeighbour(message)
}

fn routes(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    RouteNetlinkMessage::GetRoute(message)
}

fn rules(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    RouteNetlinkMessage::GetRule(message)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netlink_packet_core::NetlinkMessage;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{AddressKey, Link, LinkKind, Neighbour, Vxlan};
    use crate::rtnl::{link, request};

    use crate::mutated::mutated;

    /// Messages of each kind, with the attributes that netweft decodes.
    fn corpus() -> Vec<Vec<u8>> {
        let name = "nw-vx4096".parse().unwrap();
        let vxlan = Link {
            kind: LinkKind::Vxlan(Vxlan {
                vni: 4096,
                port: 4789,
                local: Some(IpAddr::from([192, 0, 2, 1])),
                learning: false,
            }),
            mac: "02:00:00:00:00:01".parse().ok(),
            mtu: 1450,
            up: true,
        };
        let key = AddressKey {
            link: name,
            net: "10.244.0.1/32".parse().unwrap(),
        };
        let neighbour = Neighbour {
            mac: vxlan.mac,
            permanent: true,
        };
        let messages = [
            link::add(&key.link, &vxlan).unwrap(),
            link::hairpin(&key.link, true),
            RouteNetlinkMessage::NewAddress(request::address_message(7, &key, false)),
            RouteNetlinkMessage::NewNeighbour(request::neighbour_message(
                7,
                key.net.addr(),
                Some(&neighbour),
            )),
        ];
        messages.map(serialized).into()
    }

    fn serialized(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn damaged_netlink_message_does_not_stop_decoder(bytes in mutated(corpus())) {
            let names = Names::from([(7, "nw-vx4096".parse().unwrap())]);
            if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
                && let NetlinkPayload::InnerMessage(message) = message.payload
            {
                let mut state = NetworkState::default();
                store(&mut state, &message, &names);
                if let RouteNetlinkMessage::NewLink(message) = &message {
                    decode::link(message);
                    decode::port(message);
                }
                decode::is_policy(&message);
            }
        }
    }
}
