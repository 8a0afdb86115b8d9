//! Which operations repair external changes. Pure.

use std::collections::BTreeMap;

use netweft_netstate::model::{LinkName, NetworkState};
use netweft_netstate::op::Op;

/// The actual and the desired state of an object, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The actual state.
    pub found: String,
    /// The desired state.
    pub wanted: String,
}

/// The operations that repair drift since the `baseline`, by their indexes in `ops`. An object on a link that is repaired by
/// another operation has no drift of its own.
#[must_use]
pub fn drift(
    ops: &[Op],
    baseline: &NetworkState,
    actual: &NetworkState,
    desired: &NetworkState,
) -> BTreeMap<usize, Difference> {
    let repaired_links: Vec<&LinkName> = ops.iter().filter_map(link_of).collect();
    let is_on_repaired_link = |op: &Op| {
        let mut link = op.link().into_iter();
        link_of(op).is_none() && link.any(|link| repaired_links.contains(&link))
    };
    let states = States {
        baseline,
        actual,
        desired,
    };
    let independent = ops.iter().enumerate();
    let independent = independent.filter(|(_, op)| !is_on_repaired_link(op));
    independent
        .filter_map(|(index, op)| Some((index, states.difference(op)?)))
        .collect()
}

/// Whether `op` can only succeed after `first`: an object on a link needs the link, and a route its source address.
#[must_use]
pub fn depends_on(op: &Op, first: &Op) -> bool {
    match (op, first) {
        (
            _,
            Op::LinkAdd { name, .. } | Op::LinkRecreate { name, .. } | Op::LinkChange { name, .. },
        ) => op.link() == Some(name),
        (
            Op::RouteAdd { route, .. } | Op::RouteReplace { route, .. },
            Op::AddressAdd { key, .. } | Op::AddressReplace { key, .. },
        ) => route.source == Some(key.net.addr()),
        _ => false,
    }
}

/// The link that an operation creates, changes or deletes.
#[must_use]
pub fn link_of(op: &Op) -> Option<&LinkName> {
    match op {
        Op::LinkAdd { name, .. }
        | Op::LinkRecreate { name, .. }
        | Op::LinkChange { name, .. }
        | Op::LinkDelete { name } => Some(name),
        _ => None,
    }
}

struct States<'a> {
    baseline: &'a NetworkState,
    actual: &'a NetworkState,
    desired: &'a NetworkState,
}

impl States<'_> {
    fn difference(&self, op: &Op) -> Option<Difference> {
        match op {
            Op::LinkAdd { name, .. }
            | Op::LinkRecreate { name, .. }
            | Op::LinkChange { name, .. }
            | Op::LinkDelete { name } => {
                self.of(|state| state.links.get(name), ToString::to_string)
            }
            Op::PortReplace { link, .. } | Op::PortDelete { link } => {
                self.of(|state| state.ports.get(link), ToString::to_string)
            }
            Op::AddressAdd { key, .. }
            | Op::AddressReplace { key, .. }
            | Op::AddressDelete { key } => self.of(
                |state| state.addresses.get(key),
                |address| {
                    let scope = if address.link_scope { "link" } else { "global" };
                    format!("dev {} scope {scope}", key.link)
                },
            ),
            Op::RouteAdd { key, .. }
            | Op::RouteReplace { key, .. }
            | Op::RouteDelete { key, .. } => {
                self.of(|state| state.routes.get(key), ToString::to_string)
            }
            Op::NeighbourReplace { key, .. } | Op::NeighbourDelete { key } => self.of(
                |state| state.neighbours.get(key),
                |neighbour| {
                    let mac = neighbour
                        .mac
                        .map_or("none".to_owned(), |mac| mac.to_string());
                    format!("dev {} lladdr {mac}", key.link)
                },
            ),
            Op::FdbReplace { key, .. } | Op::FdbDelete { key, .. } => self.of(
                |state| state.fdb.get(key),
                |remote| format!("dev {} dst {remote}", key.link),
            ),
        }
    }

    /// The difference of one object, if its desired state is that of the baseline.
    fn of<T: PartialEq>(
        &self,
        get: impl for<'s> Fn(&'s NetworkState) -> Option<&'s T>,
        format: impl Fn(&T) -> String,
    ) -> Option<Difference> {
        let wanted = get(self.desired);
        let describe = |object: Option<&T>| {
            object.map_or("none".to_owned(), |object| format(object).trim().to_owned())
        };
        (get(self.baseline) == wanted).then(|| Difference {
            found: describe(get(self.actual)),
            wanted: describe(wanted),
        })
    }
}

#[cfg(test)]
mod tests {
    use netweft_netstate::diff::diff;
    use netweft_netstate::model::{
        Address, AddressKey, Link, LinkKind, Route, RouteKey, RouteKind, TABLE_MAIN,
    };
    use netweft_netstate::owner::{Owner, PROTOCOL_AGENT};

    use super::*;

    fn link(mtu: u32) -> Link {
        Link {
            kind: LinkKind::Bridge,
            mac: None,
            mtu,
            up: true,
        }
    }

    fn route(state: &mut NetworkState, dst: &str, dev: Option<&str>) {
        let key = RouteKey {
            table: TABLE_MAIN,
            dst: dst.parse().unwrap(),
            metric: 20,
        };
        let route = Route {
            kind: dev.map_or(RouteKind::Blackhole, |_| RouteKind::Unicast),
            protocol: PROTOCOL_AGENT,
            via: None,
            dev: dev.map(|dev| dev.parse().unwrap()),
            onlink: false,
            source: None,
            mtu: None,
        };
        state.routes.insert(key, route);
    }

    /// A link with a route, and a blackhole.
    fn node() -> NetworkState {
        let mut state = NetworkState::default();
        state.links.insert("nw-x".parse().unwrap(), link(1400));
        route(&mut state, "10.1.0.0/26", Some("nw-x"));
        route(&mut state, "10.0.0.0/26", None);
        state
    }

    /// The description of each repair.
    fn repairs(
        baseline: &NetworkState,
        actual: &NetworkState,
        desired: &NetworkState,
    ) -> Vec<String> {
        let ops = diff(actual, desired, &Owner::agent()).ops;
        let drift = drift(&ops, baseline, actual, desired);
        let descriptions = drift.iter().map(|(index, Difference { found, wanted })| {
            let object = ops[*index].object();
            format!("{object}: {found} / {wanted}")
        });
        descriptions.collect()
    }

    fn after(change: impl FnOnce(&mut NetworkState)) -> NetworkState {
        let mut state = node();
        change(&mut state);
        state
    }

    #[test]
    fn missing_changed_or_added_object_is_drift() {
        let repairs = |actual: &NetworkState| repairs(&node(), actual, &node());
        assert_eq!(
            repairs(&after(|state| state.routes.clear())),
            [
                "route 10.0.0.0/26: none / blackhole",
                "route 10.1.0.0/26: none / dev nw-x",
            ]
        );
        let other_mtu = |state: &mut NetworkState| {
            state.links.insert("nw-x".parse().unwrap(), link(9000));
        };
        assert_eq!(
            repairs(&after(other_mtu)),
            ["link nw-x: bridge mtu 9000 up / bridge mtu 1400 up"]
        );
        assert_eq!(
            repairs(&after(|state| route(state, "10.9.0.0/26", None))),
            ["route 10.9.0.0/26: blackhole / none"]
        );
    }

    #[test]
    fn drift_of_missing_link_omits_its_dependent_objects() {
        let empty = NetworkState::default();
        let blackhole = after(|state| {
            state.links.clear();
            state.routes.retain(|_, route| route.dev.is_none());
        });
        let repairs = repairs(&node(), &blackhole, &node());
        assert_eq!(repairs, ["link nw-x: none / bridge mtu 1400 up"]);
        assert_ne!(blackhole, empty);
    }

    #[test]
    fn operations_wait_for_their_link_or_address() {
        let desired = after(|state| {
            let key = AddressKey {
                link: "nw-x".parse().unwrap(),
                net: "10.0.0.1/32".parse().unwrap(),
            };
            state.addresses.insert(key, Address::default());
            for route in state.routes.values_mut() {
                route.source = route.dev.as_ref().map(|_| "10.0.0.1".parse().unwrap());
            }
        });
        let ops = diff(&NetworkState::default(), &desired, &Owner::agent()).ops;
        let waiting = |first: fn(&Op) -> bool| -> Vec<String> {
            let first = ops.iter().find(|op| first(op)).unwrap();
            let waiting = ops.iter().filter(|op| depends_on(op, first));
            waiting.map(|op| op.object().to_string()).collect()
        };
        let link = waiting(|op| matches!(op, Op::LinkAdd { .. }));
        assert_eq!(
            link,
            ["link nw-x", "address 10.0.0.1/32", "route 10.1.0.0/26"]
        );
        let address = waiting(|op| matches!(op, Op::AddressAdd { .. }));
        assert_eq!(address, ["route 10.1.0.0/26"]);
    }

    #[test]
    fn changed_desired_state_is_not_drift() {
        let before = node();
        let wider = after(|state| {
            state.links.insert("nw-x".parse().unwrap(), link(9000));
            route(state, "10.2.0.0/26", Some("nw-x"));
        });
        assert_eq!(repairs(&before, &before, &wider), Vec::<String>::new());
        assert_eq!(repairs(&wider, &wider, &before), Vec::<String>::new());
        let drifted = after(|state| state.routes.retain(|_, route| route.dev.is_some()));
        assert_eq!(
            repairs(&before, &drifted, &wider),
            ["route 10.0.0.0/26: none / blackhole"]
        );
    }
}
