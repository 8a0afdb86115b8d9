//! The operations that change the actual state of the kernel into the desired state.
//!
//! ```text
//!   additions:  links ─▶ ports ─▶ addresses ─▶ neighbours ─▶ fdb ─▶ routes      each kind needs the kinds before it
//!   removals:   routes ─▶ fdb ─▶ neighbours ─▶ addresses ─▶ ports ─▶ links      after all additions
//! ```
//!
//! One removal comes before the additions: the last IPv4 address of a link, because the kernel removes all other IPv4 objects
//! of the link with it.
//!
//! Pure and total. A correct object needs no operation, a different one needs one replacement, and no operation is about a
//! foreign object. After the operations the difference is empty, also if they were interrupted and the rest is computed
//! again.

use std::collections::BTreeMap;

use crate::model::{Link, LinkName, NetworkState, Route, RouteKey};
use crate::op::Op;
use crate::owner::Owner;

mod cascades;
mod compatible;
#[cfg(test)]
mod tests;

use cascades::Cascades;
use compatible::incompatible;

/// The difference between the actual and the desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// The operations, in an order that the kernel accepts, and in which no destination loses its route for a moment.
    pub ops: Vec<Op>,
    /// The desired objects that cannot be created.
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
    Unowned {
        /// The operation that was left out.
        what: String,
    },
}

/// Computes the operations that change `actual` into `desired`, for the objects of `owner`.
///
/// `desired` has all objects of `owner` and no others: an object of `owner` that is not in `desired` is deleted. If the `mac`
/// of a desired link is `None`, the link may have any. A desired IPv6 route has a metric other than 0, which the kernel would
/// store as 1024.
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
    /// In the order of additions; executed in reverse order.
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

    fn unowned(&mut self, op: &Op) {
        self.conflicts.push(Conflict::Unowned {
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
                _ if !owner.owns_link(name) => self.unowned(&add()),
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
            if !self.cascades.detaches(link, port) && actual.ports.get(link) == Some(port) {
                continue;
            }
            let set = Op::PortReplace {
                link: link.clone(),
                port: port.clone(),
            };
            if owner.owns_port(link) {
                self.additions.push(set);
            } else {
                self.unowned(&set);
            }
        }
        for (link, port) in actual
            .ports
            .iter()
            .filter(|(link, _)| owner.owns_port(link))
        {
            let deleted_with_link =
                self.cascades.deletes_link(link) || self.cascades.deletes_link(&port.master);
            if !desired.ports.contains_key(link) && !deleted_with_link {
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
                .filter(|_| !self.cascades.recreates(&key.link));
            match found {
                _ if !owner.owns_address(&key) => self.unowned(&Op::AddressAdd { key, address }),
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
            if !desired.addresses.contains_key(key) && !self.cascades.deletes_link(&key.link) {
                let list = if self.cascades.disables_ipv4(key) {
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
            if !self.cascades.deletes_neighbour(key)
                && actual.neighbours.get(key) == Some(neighbour)
            {
                continue;
            }
            let set = Op::NeighbourReplace {
                key: key.clone(),
                neighbour: neighbour.clone(),
            };
            if owner.owns_neighbour(key, neighbour) {
                self.additions.push(set);
            } else {
                self.unowned(&set);
            }
        }
        for (key, _) in actual
            .neighbours
            .iter()
            .filter(|(key, found)| owner.owns_neighbour(key, found))
        {
            if !desired.neighbours.contains_key(key) && !self.cascades.deletes_link(&key.link) {
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
            if !self.cascades.recreates(&key.link) && actual.fdb.get(key) == Some(remote) {
                continue;
            }
            let set = Op::FdbReplace {
                key: key.clone(),
                remote: *remote,
            };
            if owner.owns_fdb(key) {
                self.additions.push(set);
            } else {
                self.unowned(&set);
            }
        }
        for (key, remote) in actual.fdb.iter().filter(|(key, _)| owner.owns_fdb(key)) {
            if !desired.fdb.contains_key(key) && !self.cascades.deletes_link(&key.link) {
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
        for (key, route) in without_gateway_first(&desired.routes) {
            self.desired_route(key, route);
        }
        for (key, route) in
            without_gateway_first(&actual.routes).filter(|(_, route)| owner.owns_route(route))
        {
            if !desired.routes.contains_key(key)
                && !route
                    .dev
                    .as_ref()
                    .is_some_and(|dev| self.cascades.deletes_link(dev))
            {
                self.removals.push(Op::RouteDelete {
                    key: key.clone(),
                    route: route.clone(),
                });
            }
        }
    }

    fn desired_route(&mut self, key: &RouteKey, route: &Route) {
        let add = || Op::RouteAdd {
            key: key.clone(),
            route: route.clone(),
        };
        match self.actual.routes.get(key) {
            _ if !self.owner.owns_route(route) => self.unowned(&add()),
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
                    .is_some_and(|dev| self.cascades.recreates(dev)) =>
            {
                self.additions.push(add());
            }
            Some(found) if found != route || self.cascades.damages_route(key, found) => {
                self.additions.push(Op::RouteReplace {
                    key: key.clone(),
                    route: route.clone(),
                });
            }
            Some(_) => {}
        }
    }
}

/// The routes in the order of their creation: the kernel resolves a gateway that is not onlink by the routes that exist
/// (`fib_check_nh`).
fn without_gateway_first(
    routes: &BTreeMap<RouteKey, Route>,
) -> impl Iterator<Item = (&RouteKey, &Route)> {
    let (with_gateway, without): (Vec<_>, Vec<_>) =
        routes.iter().partition(|(_, route)| route.via.is_some());
    without.into_iter().chain(with_gateway)
}
