//! Properties that a Node object reports.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

/// The addresses in the status of `node` that have one of these types, in the order of `types`.
pub fn status_addresses<'a>(
    node: &'a Node,
    types: &'a [&str],
) -> impl Iterator<Item = IpAddr> + 'a {
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    types.iter().flat_map(move |type_| {
        let of_type = addresses
            .clone()
            .filter(move |address| address.type_ == *type_);
        of_type.filter_map(|address| address.address.parse().ok())
    })
}
