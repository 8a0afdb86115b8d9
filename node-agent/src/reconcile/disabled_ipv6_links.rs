//! Links on which another program has disabled IPv6. The kernel has removed their addresses and routes, and refuses new ones until
//! IPv6 is enabled.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::{LinkName, NetworkState};

use crate::apply::sysctl::{DISABLE_IPV6, Parameters, disable_ipv6};
use crate::desired::Desired;
use crate::pods::Records;
use crate::reconcile::Reconciler;
use crate::reconcile::apply::Links;
use crate::status::Outcome;
use crate::status::problem::Problem;

impl<K: Kernel> Reconciler<K> {
    /// Enables IPv6 on existing links, before their addresses and routes are added. The sysctls of new links are set later.
    pub(super) fn enable_ipv6(
        &mut self,
        records: &Records,
        actual: &NetworkState,
        desired: &Desired,
        outcome: &mut Outcome,
    ) {
        let links = actual.links.keys();
        let existing: BTreeSet<String> = links.map(disable_ipv6).collect();
        let is_selected =
            |name: &str| Path::new(name).ends_with(DISABLE_IPV6) && existing.contains(name);
        self.set_selected_sysctls(desired, &Links::default(), is_selected, outcome);
        let of_pods: BTreeMap<String, String> = pod_links_without_route(records, actual)
            .map(|link| (disable_ipv6(link), "0".to_owned()))
            .collect();
        let none = BTreeSet::new();
        let ensured = Parameters::new(&self.paths).ensure(&none, &none, &of_pods);
        for error in &ensured.errors {
            outcome.fail(Problem::failure(error.parameter(), error));
        }
    }
}

/// Links of pods with an IPv6 address that has no route.
fn pod_links_without_route<'a>(
    records: &'a Records,
    actual: &'a NetworkState,
) -> impl Iterator<Item = &'a LinkName> {
    let routed: BTreeSet<_> = actual.routes.keys().map(|key| key.dst.addr()).collect();
    let records = records.iter().filter(|(ip, _)| ip.is_ipv6());
    let missing = records.filter(move |(ip, _)| !routed.contains(*ip));
    let links = missing.filter_map(|(_, record)| Some(&record.as_ref().ok()?.host_link));
    links.filter(|link| actual.links.contains_key(*link))
}
