//! The objects that the kernel deletes together with others, computed before, so that the operations restore them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::compatible::incompatible;
use crate::model::{AddressKey, LinkName, NeighbourKey, NetworkState, Port, Route, RouteKey};
use crate::owner::Owner;

/// The cascades of the operations from one state to another.
pub(super) struct Cascades<'a> {
    /// Links that are recreated: the kernel deletes all objects on them.
    recreated: BTreeSet<&'a LinkName>,
    /// Links that are deleted, after all additions.
    deleted: BTreeSet<&'a LinkName>,
    /// Links that get another Ethernet address: the kernel deletes their neighbours, also permanent ones
    /// (`neigh_changeaddr`).
    readdressed: BTreeSet<&'a LinkName>,
    /// Links that lose their last IPv4 address, temporarily or permanently: the kernel deletes all their IPv4 routes and
    /// neighbours (`fib_disable_ip`).
    disabled: BTreeSet<&'a LinkName>,
    /// Addresses that are temporarily absent: the kernel deletes IPv4 routes with such a preferred source
    /// (`fib_sync_down_addr`) and removes the preferred source from IPv6 routes (`rt6_remove_prefsrc`), on all links.
    interrupted: BTreeSet<IpAddr>,
}

impl<'a> Cascades<'a> {
    pub(super) fn new(actual: &'a NetworkState, desired: &NetworkState, owner: &Owner) -> Self {
        let mut cascades = Self {
            recreated: BTreeSet::new(),
            deleted: BTreeSet::new(),
            readdressed: BTreeSet::new(),
            disabled: BTreeSet::new(),
            interrupted: BTreeSet::new(),
        };
        for (name, found) in actual
            .links
            .iter()
            .filter(|(name, _)| owner.owns_link(name))
        {
            let Some(link) = desired.links.get(name) else {
                cascades.deleted.insert(name);
                continue;
            };
            if incompatible(&found.kind, &link.kind).is_some() {
                cascades.recreated.insert(name);
                continue;
            }
            if link.mac.is_some() && link.mac != found.mac {
                cascades.readdressed.insert(name);
            }
        }
        cascades.addresses(actual, desired, owner);
        cascades
    }

    fn addresses(&mut self, actual: &'a NetworkState, desired: &NetworkState, owner: &Owner) {
        let addresses = actual.addresses.iter();
        for (key, found) in addresses.filter(|(key, _)| owner.owns_address(key)) {
            let replaced = desired
                .addresses
                .get(key)
                .is_some_and(|address| address != found);
            if self.recreated.contains(&key.link) || (replaced && key.net.addr().is_ipv4()) {
                self.interrupted.insert(key.net.addr());
            }
            // New addresses are added before old ones are deleted, so only a single address interrupts IPv4.
            let on_link =
                |other: &&AddressKey| other.link == key.link && other.net.addr().is_ipv4();
            let remaining = desired.addresses.keys().filter(on_link).count();
            let single = remaining == 1 && actual.addresses.keys().filter(on_link).count() == 1;
            if key.net.addr().is_ipv4() && (remaining == 0 || (single && replaced)) {
                self.disabled.insert(&key.link);
            }
        }
    }

    /// Whether the link is recreated, so that all present objects on it are deleted before the additions.
    pub(super) fn recreates(&self, link: &LinkName) -> bool {
        self.recreated.contains(link)
    }

    /// Whether the link is deleted or recreated, so that present objects on it need no operation of their own.
    pub(super) fn deletes_link(&self, link: &LinkName) -> bool {
        self.recreated.contains(link) || self.deleted.contains(link)
    }

    /// Whether the link is detached from its bridge before the additions, because one of the two is recreated.
    pub(super) fn detaches(&self, link: &LinkName, port: &Port) -> bool {
        self.recreated.contains(link) || self.recreated.contains(&port.master)
    }

    /// Whether the deletion of this address deletes all IPv4 objects of its link, so that it must come before the additions.
    pub(super) fn disables_ipv4(&self, key: &AddressKey) -> bool {
        key.net.addr().is_ipv4() && self.disabled.contains(&key.link)
    }

    /// Whether the kernel deletes this neighbour.
    pub(super) fn deletes_neighbour(&self, key: &NeighbourKey) -> bool {
        let disabled = key.ip.is_ipv4() && self.disabled.contains(&key.link);
        disabled || self.recreated.contains(&key.link) || self.readdressed.contains(&key.link)
    }

    /// Whether the kernel deletes this route or an attribute of it, for another reason than the recreation of its link.
    pub(super) fn damages_route(&self, key: &RouteKey, route: &Route) -> bool {
        let on =
            |links: &BTreeSet<&LinkName>| route.dev.as_ref().is_some_and(|dev| links.contains(dev));
        (key.dst.addr().is_ipv4() && on(&self.disabled))
            || route
                .source
                .is_some_and(|source| self.interrupted.contains(&source))
    }
}
