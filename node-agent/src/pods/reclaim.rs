//! Comparison of records and kernel: objects that pods have lost, and orphaned objects. Pure.
//!
//! Only a record proves the owner of an object, only a link proves that a pod runs:
//!
//! | record | link | |
//! |---|---|---|
//! | yes | yes | a pod: lost objects of its link are restored |
//! | yes | no | candidate: an address without a pod |
//! | no | unused | candidate: a link without a pod |
//! | no | in use | candidate: the record of a running pod was deleted |
//!
//! Records and kernel are not read at the same time, so a single survey can show candidates although nothing is orphaned. An
//! unreadable record may belong to any pod: while one exists, no link is a candidate, and neither is the address of the record.

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
    /// An unused link without a record.
    Link(LinkName),
    /// A link without a record that a pod uses. The pod runs, so the link is reported and kept.
    LinkInUse(LinkName),
    /// A route that belongs to no record.
    Route(RouteKey),
    /// A neighbour that belongs to no record.
    Neighbour(NeighbourKey),
}

/// A comparison of all records with the kernel.
pub struct Survey<'a> {
    actual: &'a NetworkState,
    records: &'a Records,
    /// Each attachment once.
    attachments: BTreeMap<&'a env::AttachmentId, &'a Attachment>,
    unreadable: BTreeSet<IpAddr>,
    /// Links with a record.
    recorded: BTreeSet<&'a LinkName>,
    /// The objects of all records.
    expected: NetworkState,
}

impl<'a> Survey<'a> {
    /// Compares the records with the state of the kernel.
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

    /// The compared records.
    #[must_use]
    pub fn records(&self) -> &'a Records {
        self.records
    }

    /// The objects without an owner. `add_in_progress` are the addresses of unfinished ADDs.
    #[must_use]
    pub fn orphan_candidates(
        &self,
        add_in_progress: &BTreeSet<IpAddr>,
    ) -> BTreeSet<OrphanCandidate> {
        let has_pod = |attachment: &&&Attachment| {
            self.actual.links.contains_key(&attachment.host_link)
                || is_in_progress(attachment, add_in_progress)
        };
        let attachments = self.attachments.values();
        let without_pod = attachments.filter(|attachment| !has_pod(attachment));
        let mut candidates: BTreeSet<OrphanCandidate> = without_pod
            .map(|attachment| OrphanCandidate::Attachment(attachment.owner.clone()))
            .collect();
        let links = self.links_without_record();
        let links = links.filter(|_| self.unreadable.is_empty());
        candidates.extend(links.map(|link| {
            if self.is_in_use(link) {
                OrphanCandidate::LinkInUse(link.clone())
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
                    .is_some_and(|dev| self.has_no_record(dev))
        });
        candidates.extend(routes.map(|(key, _)| OrphanCandidate::Route(key.clone())));
        let neighbours = self.actual.neighbours.iter().filter(|(key, neighbour)| {
            Owner::plugin().owns_neighbour(key, neighbour)
                && !self.expected.neighbours.contains_key(*key)
                && !self.unreadable.contains(&key.ip)
                && !self.has_no_record(&key.link)
        });
        candidates.extend(neighbours.map(|(key, _)| OrphanCandidate::Neighbour(key.clone())));
        candidates
    }

    /// The attachments among these orphans.
    pub fn attachments(&self, orphans: &BTreeSet<OrphanCandidate>) -> Vec<&'a Attachment> {
        let owners = orphans.iter().filter_map(|orphan| match orphan {
            OrphanCandidate::Attachment(owner) => Some(owner),
            OrphanCandidate::Link(_)
            | OrphanCandidate::LinkInUse(_)
            | OrphanCandidate::Route(_)
            | OrphanCandidate::Neighbour(_) => None,
        });
        owners
            .filter_map(|owner| self.attachments.get(owner).copied())
            .collect()
    }

    /// The operations that restore lost objects of pods, and delete the `orphans` that are in the kernel. Objects of an ADD in
    /// progress are not changed, and neither is the MTU, which a later plugin of the chain may have set.
    #[must_use]
    pub fn repairs(
        &self,
        add_in_progress: &BTreeSet<IpAddr>,
        orphans: &BTreeSet<OrphanCandidate>,
    ) -> Diff {
        let mut desired = self.owned();
        for orphan in orphans {
            match orphan {
                OrphanCandidate::Attachment(_) | OrphanCandidate::LinkInUse(_) => {}
                OrphanCandidate::Link(link) => remove_link(&mut desired, link),
                OrphanCandidate::Route(key) => drop(desired.routes.remove(key)),
                OrphanCandidate::Neighbour(key) => drop(desired.neighbours.remove(key)),
            }
        }
        for attachment in self.attachments.values() {
            let link = &attachment.host_link;
            // A link of another kind with this name does not belong to the plugin.
            let found = self.actual.links.get(link);
            let Some(found) = found.filter(|found| found.kind == LinkKind::Veth) else {
                continue;
            };
            if is_in_progress(attachment, add_in_progress) {
                continue;
            }
            let mut wanted = pod::host_state(attachment);
            wanted
                .links
                .values_mut()
                .for_each(|link| link.mtu = found.mtu);
            // If the bridge is missing, the agent is about to create it, or reports the failure.
            wanted
                .ports
                .retain(|_, port| self.actual.links.contains_key(&port.master));
            desired.ports.remove(link);
            merge(&mut desired, wanted);
        }
        diff(self.actual, &desired, &Owner::plugin())
    }

    /// The objects of the plugin in the kernel.
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

    fn links_without_record(&self) -> impl Iterator<Item = &'a LinkName> {
        let links = self.actual.links.keys();
        links.filter(|link| self.has_no_record(link))
    }

    fn has_no_record(&self, link: &LinkName) -> bool {
        Owner::plugin().owns_link(link) && !self.recorded.contains(link)
    }

    /// Whether a pod may be reachable by this link: it is up, and a bridge port or has a route.
    fn is_in_use(&self, link: &LinkName) -> bool {
        let up = self.actual.links.get(link).is_some_and(|link| link.up);
        let routed = |route: &netweft_netstate::model::Route| {
            route.dev.as_ref() == Some(link) && Owner::plugin().owns_route(route)
        };
        up && (self.actual.ports.contains_key(link) || self.actual.routes.values().any(routed))
    }
}

fn is_in_progress(attachment: &Attachment, add_in_progress: &BTreeSet<IpAddr>) -> bool {
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

/// Removes a link with everything that the kernel deletes together with it.
fn remove_link(state: &mut NetworkState, link: &LinkName) {
    state.links.remove(link);
    state.ports.remove(link);
    state
        .routes
        .retain(|_, route| route.dev.as_ref() != Some(link));
    state.neighbours.retain(|key, _| key.link != *link);
}
