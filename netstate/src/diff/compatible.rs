//! Whether a link can be changed into the desired one, or has to be recreated.

use std::net::IpAddr;

use crate::model::{LinkKind, Vxlan};

/// Why a link has to be recreated, as a text for logs; `None` if it can stay.
pub(super) fn incompatible(found: &LinkKind, desired: &LinkKind) -> Option<String> {
    match (found, desired) {
        (LinkKind::Vxlan(found), LinkKind::Vxlan(desired)) => incompatible_vxlan(found, desired),
        _ if found == desired => None,
        _ => Some(format!("kind is {found}, should be {desired}")),
    }
}

fn incompatible_vxlan(found: &Vxlan, desired: &Vxlan) -> Option<String> {
    let Vxlan {
        vni,
        port,
        local,
        learning,
    } = desired;
    let address =
        |local: Option<IpAddr>| local.map_or_else(|| "unset".to_owned(), |local| local.to_string());
    let on = |learning: bool| if learning { "on" } else { "off" };
    if found.vni != *vni {
        Some(format!("vni is {}, should be {vni}", found.vni))
    } else if found.port != *port {
        Some(format!("port is {}, should be {port}", found.port))
    } else if found.local != *local {
        Some(format!(
            "local address is {}, should be {}",
            address(found.local),
            address(*local)
        ))
    } else if found.learning != *learning {
        Some(format!(
            "learning is {}, should be {}",
            on(found.learning),
            on(*learning)
        ))
    } else {
        None
    }
}
