//! The effect of an operation on a state in memory, with the refusals and cascades of the kernel.

use std::net::IpAddr;

use nix::errno::Errno;

use crate::model::{
    Address, AddressKey, LinkKind, LinkName, Mac, NetworkState, Port, Route, RouteKey,
};
use crate::op::Op;

/// Applies `op` to `state`.
///
/// # Errors
/// The error number with which the kernel refuses the operation; `state` is then unchanged.
pub fn apply(state: &mut NetworkState, op: &Op) -> Result<(), Errno> {
    match op {
        Op::LinkAdd { name, link } => {
            if state.links.contains_key(name) {
                return Err(Errno::EEXIST);
            }
            state.links.insert(name.clone(), link.clone());
        }
        Op::LinkRecreate { name, link, .. } => {
            drop_link(state, name);
            state.links.insert(name.clone(), link.clone());
        }
        Op::LinkChange { name, mtu, mac, up } => {
            change_link(state, name, *mtu, *mac, *up)?;
        }
        Op::LinkDelete { name } => drop_link(state, name),
        Op::PortReplace { link, port } => set_port(state, link, port)?,
        Op::PortDelete { link } => drop(state.ports.remove(link)),
        Op::AddressAdd { key, address } => add_address(state, key, address)?,
        Op::AddressReplace { key, address } => {
            drop_address(state, key);
            add_address(state, key, address)?;
        }
        Op::AddressDelete { key } => drop_address(state, key),
        Op::RouteAdd { key, .. } if state.routes.contains_key(key) => return Err(Errno::EEXIST),
        Op::RouteAdd { key, route } | Op::RouteReplace { key, route } => {
            put_route(state, key, route)?;
        }
        Op::RouteDelete { key, route } => {
            // The preferred source and the MTU are not compared: the kernel may have removed the source.
            let target = |route: &Route| (route.protocol, route.kind, route.via, route.dev.clone());
            if state
                .routes
                .get(key)
                .is_some_and(|found| target(found) == target(route))
            {
                state.routes.remove(key);
            }
        }
        Op::NeighbourReplace { key, neighbour } => {
            // A neighbour can be set on a link that is down (`neigh_add`).
            require_link(state, &key.link)?;
            state.neighbours.insert(key.clone(), neighbour.clone());
        }
        Op::NeighbourDelete { key } => drop(state.neighbours.remove(key)),
        Op::FdbReplace { key, remote } => {
            require_link(state, &key.link)?;
            state.fdb.insert(key.clone(), *remote);
        }
        Op::FdbDelete { key, .. } => drop(state.fdb.remove(key)),
    }
    Ok(())
}

fn require_link(state: &NetworkState, link: &LinkName) -> Result<(), Errno> {
    state
        .links
        .contains_key(link)
        .then_some(())
        .ok_or(Errno::ENODEV)
}

fn change_link(
    state: &mut NetworkState,
    name: &LinkName,
    mtu: Option<u32>,
    mac: Option<Mac>,
    up: Option<bool>,
) -> Result<(), Errno> {
    let link = state.links.get_mut(name).ok_or(Errno::ENODEV)?;
    link.mtu = mtu.unwrap_or(link.mtu);
    link.mac = mac.or(link.mac);
    link.up = up.unwrap_or(link.up);
    if mac.is_some() || up == Some(false) {
        state.neighbours.retain(|key, _| key.link != *name);
    }
    if up == Some(false) {
        state
            .routes
            .retain(|_, route| route.dev.as_ref() != Some(name));
    }
    Ok(())
}

/// A bridge cannot be attached to a bridge (`br_add_if`).
fn set_port(state: &mut NetworkState, link: &LinkName, port: &Port) -> Result<(), Errno> {
    let kind = |name| state.links.get(name).map(|link| &link.kind);
    if kind(link).ok_or(Errno::ENODEV)? == &LinkKind::Bridge {
        return Err(Errno::ELOOP);
    }
    if kind(&port.master).ok_or(Errno::ENODEV)? != &LinkKind::Bridge {
        return Err(Errno::EOPNOTSUPP);
    }
    state.ports.insert(link.clone(), port.clone());
    Ok(())
}

fn drop_link(state: &mut NetworkState, name: &LinkName) {
    let addresses: Vec<_> = state
        .addresses
        .keys()
        .filter(|key| key.link == *name)
        .cloned()
        .collect();
    state.links.remove(name);
    state
        .ports
        .retain(|link, port| link != name && port.master != *name);
    state
        .routes
        .retain(|_, route| route.dev.as_ref() != Some(name));
    state.neighbours.retain(|key, _| key.link != *name);
    state.fdb.retain(|key, _| key.link != *name);
    for key in addresses {
        drop_address(state, &key);
    }
}

fn add_address(state: &mut NetworkState, key: &AddressKey, address: &Address) -> Result<(), Errno> {
    require_link(state, &key.link)?;
    state.addresses.insert(key.clone(), address.clone());
    Ok(())
}

/// With the last IPv4 address the kernel deletes the IPv4 routes and neighbours of the link (`fib_disable_ip`). It also deletes
/// IPv4 routes with this preferred source (`fib_sync_down_addr`), and removes it from IPv6 routes (`rt6_remove_prefsrc`).
fn drop_address(state: &mut NetworkState, key: &AddressKey) {
    let ip = key.net.addr();
    if state.addresses.remove(key).is_none() {
        return;
    }
    let same = |other: &AddressKey| other.link == key.link && other.net.addr().is_ipv4();
    if ip.is_ipv4() && !state.addresses.keys().any(same) {
        let on_link =
            |dst: IpAddr, link: Option<&LinkName>| dst.is_ipv4() && link == Some(&key.link);
        state
            .routes
            .retain(|key, route| !on_link(key.dst.addr(), route.dev.as_ref()));
        state
            .neighbours
            .retain(|key, _| !on_link(key.ip, Some(&key.link)));
    }
    if is_local(state, ip) {
        return;
    }
    state
        .routes
        .retain(|_, route| ip.is_ipv6() || route.source != Some(ip));
    for route in state
        .routes
        .values_mut()
        .filter(|route| route.source == Some(ip))
    {
        route.source = None;
    }
}

fn is_local(state: &NetworkState, ip: IpAddr) -> bool {
    state.addresses.keys().any(|key| key.net.addr() == ip)
}

fn put_route(state: &mut NetworkState, key: &RouteKey, route: &Route) -> Result<(), Errno> {
    if let Some(dev) = &route.dev
        && !state.links.get(dev).ok_or(Errno::ENODEV)?.up
    {
        return Err(Errno::ENETDOWN);
    }
    if route.source.is_some_and(|source| !is_local(state, source)) {
        return Err(Errno::EINVAL);
    }
    state.routes.insert(key.clone(), route.clone());
    Ok(())
}
