//! Comparison of records and kernel: objects that pods have lost, and orphaned objects. Pure.
//!
//! Only a record proves the owner of an object, only a link proves that a pod runs:
//!
//! | record | link | |
//! |---|---|---|
//! | yes | yes | a pod: what its link has lost is put back |
//! | yes | no | suspect: an address without a pod |
//! | no | carries nothing | suspect: a link without a pod |
//! | no | carries a pod's address | suspect: the record was deleted |
//!
//! Records and kernel are not read at one moment, so one look can show any of the suspects where all is well. A record that cannot be read may be anybody's, so while there is one no link is suspect, and its address is not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netweft_cni::attachment::Attachment;
use netweft_cni::env;
use netweft_cni::pod;
use netweft_netstate::diff::{Diff, diff};
use netweft_netstate::model::{LinkKind, LinkName, NeighbourKey, NetworkState, RouteKey};
use netweft_netstate::owner::Owner;

/// The records by address, as the plugin's store lists them.
pub type Records = BTreeMap<IpAddr, io::Result<Attachment>>;

/// An object of the plugin that seems to have no owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OrphanCandidate {
    /// The record of an attachment without a link.
    Attachment(env::AttachmentId),
    /// A link without a record that carries nothing.
    Link(LinkName),
    /// A link without a record that carries a pod's address. The pod is alive, so this is only ever named.
    Orphan(LinkName),
    /// A route that belongs to no record.
    Route(RouteKey),
    /// A neighbour that belongs to no record.
    Neighbour(NeighbourKey),
}

/// One look at the pods of a node.
pub struct Survey<'a> {
    actual: &'a NetworkState,
    records: &'a Records,
    /// Each attachment once.
    attachments: BTreeMap<&'a env::AttachmentId, &'a Attachment>,
    unreadable: BTreeSet<IpAddr>,
    /// Links with a record.
    recorded: BTreeSet<&'a LinkName>,
    /// What all records together stand for.
    expected: NetworkState,
}

impl<'a> Survey<'a> {
    /// Joins the records and the kernel's state.
    #[must_use]
    pub fn new(actual: &'a NetworkState, records: &'a Records) -> Self {
        let readable = records.values().filter_map(|record| record.as_ref().ok());
        let attachments: BTreeMap<_, _> = readable.map(|record| (&record.owner, record)).collect();
        let unreadable = records.iter().filter(|(_, record)| record.is_err());
        let mut expected = NetworkState::default();
        for attachment in attachments.values() {
            merge(&mut expected, pod::host_state(attachment));
        }
        Self {
            actual,
            records,
            unreadable: unreadable.map(|(ip, _)| *ip).collect(),
            recorded: attachments
                .values()
                .map(|attachment| &attachment.host_link)
                .collect(),
            attachments,
            expected,
        }
    }

    /// What was looked at.
    #[must_use]
    pub fn records(&self) -> &'a Records {
        self.records
    }

    /// The objects without an owner. `add_in_progress` are the addresses of unfinished ADDs.
    #[must_use]
    pub fn suspects(&self, add_in_progress: &BTreeSet<IpAddr>) -> BTreeSet<OrphanCandidate> {
        let alive = |attachment: &&&Attachment| {
            self.actual.links.contains_key(&attachment.host_link)
                || busy(attachment, add_in_progress)
        };
        let attachments = self.attachments.values().filter(|one| !alive(one));
        let mut suspects: BTreeSet<OrphanCandidate> = attachments
            .map(|attachment| OrphanCandidate::Attachment(attachment.owner.clone()))
            .collect();
        let links = self.unrecorded().filter(|_| self.unreadable.is_empty());
        suspects.extend(links.map(|link| {
            if self.carries(link) {
                OrphanCandidate::Orphan(link.clone())
            } else {
                OrphanCandidate::Link(link.clone())
            }
        }));
        let routes = self.actual.routes.iter().filter(|(key, route)| {
            Owner::plugin().owns_route(route)
                && !self.expected.routes.contains_key(*key)
                && !self.unreadable.contains(&key.dst.addr())
                && !route
                    .dev
                    .as_ref()
                    .is_some_and(|dev| self.is_unrecorded(dev))
        });
        suspects.extend(routes.map(|(key, _)| OrphanCandidate::Route(key.clone())));
        let neighbours = self.actual.neighbours.iter().filter(|(key, neighbour)| {
            Owner::plugin().owns_neighbour(key, neighbour)
                && !self.expected.neighbours.contains_key(*key)
                && !self.unreadable.contains(&key.ip)
                && !self.is_unrecorded(&key.link)
        });
        suspects.extend(neighbours.map(|(key, _)| OrphanCandidate::Neighbour(key.clone())));
        suspects
    }

    /// The attachments among these suspects.
    pub fn attachments(&self, suspects: &BTreeSet<OrphanCandidate>) -> Vec<&'a Attachment> {
        let owners = suspects.iter().filter_map(|suspect| match suspect {
            OrphanCandidate::Attachment(owner) => Some(owner),
            OrphanCandidate::Link(_)
            | OrphanCandidate::Orphan(_)
            | OrphanCandidate::Route(_)
            | OrphanCandidate::Neighbour(_) => None,
        });
        owners
            .filter_map(|owner| self.attachments.get(owner).copied())
            .collect()
    }

    /// What puts back what pods have lost, and takes away those of `dead` that are in the kernel. What an ADD is at work on
    /// is left as it is, and so is the MTU, which a later plugin may have changed.
    #[must_use]
    pub fn repairs(
        &self,
        add_in_progress: &BTreeSet<IpAddr>,
        dead: &BTreeSet<OrphanCandidate>,
    ) -> Diff {
        let mut desired = self.owned();
        for suspect in dead {
            match suspect {
                OrphanCandidate::Attachment(_) | OrphanCandidate::Orphan(_) => {}
                OrphanCandidate::Link(link) => remove_link(&mut desired, link),
                OrphanCandidate::Route(key) => drop(desired.routes.remove(key)),
                OrphanCandidate::Neighbour(key) => drop(desired.neighbours.remove(key)),
            }
        }
        for attachment in self.attachments.values() {
            let link = &attachment.host_link;
            // A link of another kind under this name is none of ours.
            let found = self.actual.links.get(link);
            let Some(found) = found.filter(|found| found.kind == LinkKind::Veth) else {
                continue;
            };
            if busy(attachment, add_in_progress) {
                continue;
            }
            let mut wanted = pod::host_state(attachment);
            wanted
                .links
                .values_mut()
                .for_each(|link| link.mtu = found.mtu);
            // Where there is no bridge the agent is about to create it, or reports why it cannot.
            wanted
                .ports
                .retain(|_, port| self.actual.links.contains_key(&port.master));
            desired.ports.remove(link);
            merge(&mut desired, wanted);
        }
        diff(self.actual, &desired, &Owner::plugin())
    }

    /// The plugin's part of the kernel's state.
    fn owned(&self) -> NetworkState {
        let owner = Owner::plugin();
        let mut state = self.actual.clone();
        state.links.retain(|name, _| owner.owns_link(name));
        state.ports.retain(|link, _| owner.owns_port(link));
        state.routes.retain(|_, route| owner.owns_route(route));
        state
            .neighbours
            .retain(|key, neighbour| owner.owns_neighbour(key, neighbour));
        state.addresses.clear();
        state.fdb.clear();
        state
    }

    fn unrecorded(&self) -> impl Iterator<Item = &'a LinkName> {
        let links = self.actual.links.keys();
        links.filter(|link| self.is_unrecorded(link))
    }

    fn is_unrecorded(&self, link: &LinkName) -> bool {
        Owner::plugin().owns_link(link) && !self.recorded.contains(link)
    }

    /// Whether a pod may be reached by this link: it is up and something leads over it.
    fn carries(&self, link: &LinkName) -> bool {
        let up = self.actual.links.get(link).is_some_and(|link| link.up);
        let routed = |route: &netweft_netstate::model::Route| {
            route.dev.as_ref() == Some(link) && Owner::plugin().owns_route(route)
        };
        up && (self.actual.ports.contains_key(link) || self.actual.routes.values().any(routed))
    }
}

fn busy(attachment: &Attachment, add_in_progress: &BTreeSet<IpAddr>) -> bool {
    let mut addresses = attachment.addresses.iter();
    addresses.any(|address| add_in_progress.contains(&address.ip))
}

fn merge(into: &mut NetworkState, state: NetworkState) {
    let NetworkState {
        links,
        ports,
        addresses,
        routes,
        neighbours,
        fdb,
        carriers: _,
        policy_routing: _,
        special_addresses: _,
    } = state;
    into.links.extend(links);
    into.ports.extend(ports);
    into.addresses.extend(addresses);
    into.routes.extend(routes);
    into.neighbours.extend(neighbours);
    into.fdb.extend(fdb);
}

/// With all that goes with it.
fn remove_link(state: &mut NetworkState, link: &LinkName) {
    state.links.remove(link);
    state.ports.remove(link);
    state
        .routes
        .retain(|_, route| route.dev.as_ref() != Some(link));
    state.neighbours.retain(|key, _| key.link != *link);
}
