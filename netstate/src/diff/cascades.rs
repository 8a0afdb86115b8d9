//! What a difference costs besides what it says: the kernel's cascades, known beforehand so that the lost is put back.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::compatible::incompatible;
use crate::model::{AddressKey, LinkName, NeighbourKey, NetworkState, Port, Route, RouteKey};
use crate::owner::Owner;

/// What will be lost on the way from one state to another.
pub(super) struct Cascades<'a> {
    /// Links that are recreated: what is on them goes with them.
    recreated: BTreeSet<&'a LinkName>,
    /// Links that are deleted, after everything new is in place.
    deleted: BTreeSet<&'a LinkName>,
    /// Links that get another MAC, by which the kernel drops their neighbours, permanent ones too (`neigh_changeaddr`).
    readdressed: BTreeSet<&'a LinkName>,
    /// Links that have no IPv4 address for a moment or for good after having had one. The kernel then drops all IPv4
    /// routes and neighbours on them (`fib_disable_ip`).
    disabled: BTreeSet<&'a LinkName>,
    /// Addresses that are gone for a moment. The kernel drops IPv4 routes that prefer such an address as their source
    /// (`fib_sync_down_addr`) and takes the preference from IPv6 routes (`rt6_remove_prefsrc`), on whatever link.
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
        let ours = actual.addresses.iter();
        for (key, found) in ours.filter(|(key, _)| owner.owns_address(key)) {
            let replaced = desired
                .addresses
                .get(key)
                .is_some_and(|wanted| wanted != found);
            if self.recreated.contains(&key.link) || (replaced && key.net.addr().is_ipv4()) {
                self.interrupted.insert(key.net.addr());
            }
            // New addresses come before old ones go, so nothing is lost while there is more than the one.
            let on_link =
                |other: &&AddressKey| other.link == key.link && other.net.addr().is_ipv4();
            let wanted = desired.addresses.keys().filter(on_link).count();
            let alone = wanted == 1 && actual.addresses.keys().filter(on_link).count() == 1;
            if key.net.addr().is_ipv4() && (wanted == 0 || (alone && replaced)) {
                self.disabled.insert(&key.link);
            }
        }
    }

    /// Whether what is on this link now is gone before anything is put on it.
    pub(super) fn recreated(&self, link: &LinkName) -> bool {
        self.recreated.contains(link)
    }

    /// Whether what is on this link now goes without an operation of its own.
    pub(super) fn vanishing(&self, link: &LinkName) -> bool {
        self.recreated.contains(link) || self.deleted.contains(link)
    }

    /// Whether this link stops being a port before anything is set up anew: a bridge lets go of its ports when it goes.
    pub(super) fn port(&self, link: &LinkName, port: &Port) -> bool {
        self.recreated.contains(link) || self.recreated.contains(&port.master)
    }

    /// Whether taking this address from its link drops what else is there, so that it has to happen before, not after,
    /// the new is put there.
    pub(super) fn disables(&self, key: &AddressKey) -> bool {
        key.net.addr().is_ipv4() && self.disabled.contains(&key.link)
    }

    /// Whether this neighbour is lost.
    pub(super) fn neighbour(&self, key: &NeighbourKey) -> bool {
        let disabled = key.ip.is_ipv4() && self.disabled.contains(&key.link);
        disabled || self.recreated.contains(&key.link) || self.readdressed.contains(&key.link)
    }

    /// Whether this route is lost or loses an attribute, for another reason than that its link is recreated.
    pub(super) fn route(&self, key: &RouteKey, route: &Route) -> bool {
        let on =
            |links: &BTreeSet<&LinkName>| route.dev.as_ref().is_some_and(|dev| links.contains(dev));
        (key.dst.addr().is_ipv4() && on(&self.disabled))
            || route
                .source
                .is_some_and(|source| self.interrupted.contains(&source))
    }
}
