//! Whether a living link can become the desired one.

use std::net::IpAddr;

use crate::model::{LinkKind, Vxlan};

/// Why a link has to be recreated, in words; `None` if it can stay.
pub(super) fn incompatible(found: &LinkKind, wanted: &LinkKind) -> Option<String> {
    match (found, wanted) {
        (LinkKind::Vxlan(found), LinkKind::Vxlan(wanted)) => incompatible_vxlan(found, wanted),
        _ if found == wanted => None,
        _ => Some(format!("it is {found}, should be {wanted}")),
    }
}

fn incompatible_vxlan(found: &Vxlan, wanted: &Vxlan) -> Option<String> {
    let Vxlan {
        vni,
        port,
        local,
        learning,
    } = wanted;
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
