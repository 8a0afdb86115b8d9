//! The pods that prevent pools from being drained.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netweft_cni::attachment::Attachment;
use netweft_crds::DrainingPod;

use crate::inputs::Pool;

/// Maximum number in a status, as in the CRD.
const MAX_REPORTED: usize = 64;

/// The pods with an address of a pool that is disabled or being deleted. `records` are the records of all addresses.
#[must_use]
pub fn pods<'a>(
    pools: &BTreeMap<String, Pool>,
    records: impl Iterator<Item = (IpAddr, &'a Attachment)>,
) -> Vec<DrainingPod> {
    let draining = |name: &str| pools.get(name).is_some_and(|pool| pool.draining);
    let pods = records.filter_map(|(ip, attachment)| {
        let mut addresses = attachment.addresses.iter();
        let address = addresses.find(|address| address.ip == ip)?;
        let pod = &attachment.pod;
        draining(&address.pool).then(|| DrainingPod {
            pool: address.pool.clone(),
            namespace: pod.namespace.clone().unwrap_or_default(),
            // Containers outside Kubernetes have an ID of the runtime only.
            name: pod
                .name
                .clone()
                .unwrap_or_else(|| attachment.owner.container_id.clone()),
        })
    });
    let mut pods: Vec<_> = pods.collect();
    pods.sort();
    pods.truncate(MAX_REPORTED);
    pods
}
