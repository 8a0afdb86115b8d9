//! What has to change so that the kernel agrees with what is desired.
//!
//! ```text
//!   additions:  links ─▶ ports ─▶ addresses ─▶ neighbours ─▶ fdb ─▶ routes      each needs what stands before it
//!   removals:   routes ─▶ fdb ─▶ neighbours ─▶ addresses ─▶ ports ─▶ links      only when all that is new is there
//! ```
//!
//! One thing breaks early: the last IPv4 address of a link, because the kernel drops all else that is IPv4 there with it.
//!
//! Pure and total. What is right is not touched, what differs is one replacement, what is not ours appears in no operation.
//! Running the operations and computing the difference again yields nothing, and so does cutting them short and going on.

use crate::model::{Link, LinkName, NetworkState, Route, RouteKey};
use crate::op::Op;
use crate::owner::Owner;

mod cascades;
mod compatible;
#[cfg(test)]
mod tests;

use cascades::Cascades;
use compatible::incompatible;

/// The difference between what is and what should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// What to do, in an order that the kernel accepts and that never leaves a destination without a route it had.
    pub ops: Vec<Op>,
    /// What cannot be had, because somebody else's object is in the way.
    pub conflicts: Vec<Conflict>,
}

/// A desired object that is not created. The message is for a condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A route of another program has the key of a desired route.
    #[error(
        "route {key} metric {}{found} of another program (protocol {}) prevents route {key}{wanted} of netweft: delete the route of the other program (ip route delete {key} metric {}), and stop the program from adding the route again",
        key.metric,
        found.protocol,
        key.metric
    )]
    RouteTaken {
        /// The common key.
        key: RouteKey,
        /// The route of the other program, which stays.
        found: Route,
        /// The desired route, which is not added.
        wanted: Route,
    },
    /// The desired object has no mark of its owner, so a later comparison would not find it.
    #[error(
        "{what}: not applied, because the object has no mark of its owner; please report this as a bug of netweft"
    )]
    NotOurs {
        /// The operation that was left out.
        what: String,
    },
}

/// Computes what turns `actual` into `desired` as far as `owner` owns it.
///
/// `desired` holds only `owner`'s objects, complete: what `owner` owns and is not in it gets deleted. A desired link's
/// `mac` of `None` means any. A desired IPv6 route has a metric other than 0, which the kernel would store as 1024.
#[must_use]
pub fn diff(actual: &NetworkState, desired: &NetworkState, owner: &Owner) -> Diff {
    let mut pass = Pass::new(actual, desired, owner);
    pass.links();
    pass.ports();
    pass.addresses();
    pass.neighbours();
    pass.fdb();
    pass.routes();
    let mut ops = pass.additions;
    ops.extend(pass.removals.into_iter().rev());
    Diff {
        ops,
        conflicts: pass.conflicts,
    }
}

struct Pass<'a> {
    actual: &'a NetworkState,
    desired: &'a NetworkState,
    owner: &'a Owner,
    cascades: Cascades<'a>,
    additions: Vec<Op>,
    /// In the order of additions; run in reverse.
    removals: Vec<Op>,
    conflicts: Vec<Conflict>,
}

impl<'a> Pass<'a> {
    fn new(actual: &'a NetworkState, desired: &'a NetworkState, owner: &'a Owner) -> Self {
        Self {
            actual,
            desired,
            owner,
            cascades: Cascades::new(actual, desired, owner),
            additions: Vec::new(),
            removals: Vec::new(),
            conflicts: Vec::new(),
        }
    }

    fn not_ours(&mut self, op: &Op) {
        self.conflicts.push(Conflict::NotOurs {
            what: op.to_string(),
        });
    }

    fn links(&mut self) {
        let Self {
            actual,
            desired,
            owner,
            ..
        } = *self;
        for (name, link) in &desired.links {
            let add = || Op::LinkAdd {
                name: name.clone(),
                link: link.clone(),
            };
            match actual.links.get(name) {
                _ if !owner.owns_link(name) => self.not_ours(&add()),
                None => self.additions.push(add()),
                Some(found) => self.existing_link(name, found, link),
            }
        }
        for name in actual.links.keys().filter(|name| owner.owns_link(name)) {
            if !desired.links.contains_key(name) {
                self.removals.push(Op::LinkDelete { name: name.clone() });
            }
        }
    }

    fn existing_link(&mut self, name: &LinkName, found: &Link, link: &Link) {
        if let Some(reason) = incompatible(&found.kind, &link.kind) {
            self.additions.push(Op::LinkRecreate {
                name: name.clone(),
                link: link.clone(),
                reason,
            });
            return;
        }
        let mtu = (found.mtu != link.mtu).then_some(link.mtu);
        let mac = link.mac.filter(|_| found.mac != link.mac);
        let up = (found.up != link.up).then_some(link.up);
        if mtu.is_some() || mac.is_some() || up.is_some() {
            self.additions.push(Op::LinkChange {
                name: name.clone(),
                mtu,
                mac,
                up,
            });
        }
    }

    fn ports(&mut self) {
        let Self {
            actual,
            desired,
            owner,
            ..
        } = *self;
        for (link, port) in &desired.ports {
            if !self.cascades.port(link, port) && actual.ports.get(link) == Some(port) {
                continue;
            }
            let set = Op::PortReplace {
                link: link.clone(),
                port: port.clone(),
            };
            if owner.owns_port(link) {
                self.additions.push(set);
            } else {
                self.not_ours(&set);
            }
        }
        for (link, port) in actual
            .ports
            .iter()
            .filter(|(link, _)| owner.owns_port(link))
        {
            let goes_by_itself =
                self.cascades.vanishing(link) || self.cascades.vanishing(&port.master);
            if !desired.ports.contains_key(link) && !goes_by_itself {
                self.removals.push(Op::PortDelete { link: link.clone() });
            }
        }
    }

    fn addresses(&mut self) {
        let Self {
            actual,
            desired,
            owner,
            ..
        } = *self;
        let mut replace = Vec::new();
        for (key, address) in &desired.addresses {
            let (key, address) = (key.clone(), address.clone());
            let found = actual
                .addresses
                .get(&key)
                .filter(|_| !self.cascades.recreated(&key.link));
            match found {
                _ if !owner.owns_address(&key) => self.not_ours(&Op::AddressAdd { key, address }),
                None => self.additions.push(Op::AddressAdd { key, address }),
                // The kernel derives the scope of an IPv6 address from the address itself (`ipv6_addr_type`).
                Some(found) if key.net.addr().is_ipv4() && *found != address => {
                    replace.push(Op::AddressReplace { key, address });
                }
                Some(_) => {}
            }
        }
        self.additions.extend(replace);
        for key in actual
            .addresses
            .keys()
            .filter(|key| owner.owns_address(key))
        {
            if !desired.addresses.contains_key(key) && !self.cascades.vanishing(&key.link) {
                let list = if self.cascades.disables(key) {
                    &mut self.additions
                } else {
                    &mut self.removals
                };
                list.push(Op::AddressDelete { key: key.clone() });
            }
        }
    }

    fn neighbours(&mut self) {
        let Self {
            actual,
            desired,
            owner,
            ..
        } = *self;
        for (key, neighbour) in &desired.neighbours {
            if !self.cascades.neighbour(key) && actual.neighbours.get(key) == Some(neighbour) {
                continue;
            }
            let set = Op::NeighbourReplace {
                key: key.clone(),
                neighbour: neighbour.clone(),
            };
            if owner.owns_neighbour(key, neighbour) {
                self.additions.push(set);
            } else {
                self.not_ours(&set);
            }
        }
        for (key, _) in actual
            .neighbours
            .iter()
            .filter(|(key, found)| owner.owns_neighbour(key, found))
        {
            if !desired.neighbours.contains_key(key) && !self.cascades.vanishing(&key.link) {
                self.removals.push(Op::NeighbourDelete { key: key.clone() });
            }
        }
    }

    fn fdb(&mut self) {
        let Self {
            actual,
            desired,
            owner,
            ..
        } = *self;
        for (key, remote) in &desired.fdb {
            if !self.cascades.recreated(&key.link) && actual.fdb.get(key) == Some(remote) {
                continue;
            }
            let set = Op::FdbReplace {
                key: key.clone(),
                remote: *remote,
            };
            if owner.owns_fdb(key) {
                self.additions.push(set);
            } else {
                self.not_ours(&set);
            }
        }
        for (key, remote) in actual.fdb.iter().filter(|(key, _)| owner.owns_fdb(key)) {
            if !desired.fdb.contains_key(key) && !self.cascades.vanishing(&key.link) {
                self.removals.push(Op::FdbDelete {
                    key: key.clone(),
                    remote: *remote,
                });
            }
        }
    }

    fn routes(&mut self) {
        let Self {
            actual,
            desired,
            owner,
            ..
        } = *self;
        // A next hop that is not onlink is looked up (`fib_check_nh`), so routes without one come first.
        let (through, direct): (Vec<_>, Vec<_>) = desired
            .routes
            .iter()
            .partition(|(_, route)| route.via.is_some());
        for (key, route) in direct.into_iter().chain(through) {
            self.wanted_route(key, route);
        }
        let (through, direct): (Vec<_>, Vec<_>) = actual
            .routes
            .iter()
            .partition(|(_, route)| route.via.is_some());
        for (key, route) in direct
            .into_iter()
            .chain(through)
            .filter(|(_, route)| owner.owns_route(route))
        {
            if !desired.routes.contains_key(key)
                && !route
                    .dev
                    .as_ref()
                    .is_some_and(|dev| self.cascades.vanishing(dev))
            {
                self.removals.push(Op::RouteDelete {
                    key: key.clone(),
                    route: route.clone(),
                });
            }
        }
    }

    fn wanted_route(&mut self, key: &RouteKey, route: &Route) {
        let add = || Op::RouteAdd {
            key: key.clone(),
            route: route.clone(),
        };
        match self.actual.routes.get(key) {
            _ if !self.owner.owns_route(route) => self.not_ours(&add()),
            None => self.additions.push(add()),
            Some(found) if !self.owner.owns_route(found) => {
                self.conflicts.push(Conflict::RouteTaken {
                    key: key.clone(),
                    found: found.clone(),
                    wanted: route.clone(),
                });
            }
            Some(found)
                if found
                    .dev
                    .as_ref()
                    .is_some_and(|dev| self.cascades.recreated(dev)) =>
            {
                self.additions.push(add());
            }
            Some(found) if found != route || self.cascades.route(key, found) => {
                self.additions.push(Op::RouteReplace {
                    key: key.clone(),
                    route: route.clone(),
                });
            }
            Some(_) => {}
        }
    }
}
