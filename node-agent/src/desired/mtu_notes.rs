//! Whether what is configured fits the links that carry it.

use netweft_crds::{NodeMode, Transport};

use crate::desired::overhead;
use crate::inputs::Inputs;
use crate::inputs::host_facts::{Egress, Facts};
use crate::status::problem::Problem;

/// A `spec.mtu` that is more than the node's own link has room for. The node goes on: small packets pass, and large ones where
/// fragments do.
pub fn beyond(inputs: &Inputs, facts: &Facts, mode: &NodeMode) -> Option<Problem> {
    let Egress { link, mtu, .. } = match mode.transport.get()? {
        Transport::Direct | Transport::Bgp => {
            facts.egress.values().min_by_key(|egress| egress.mtu)?
        }
        Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_) => {
            facts.egress.get(&inputs.local(mode)?)?
        }
    };
    let overhead = overhead(mode)?;
    let room = mtu.saturating_sub(overhead);
    let NodeMode { name, mtu: set, .. } = mode;
    let consequence = if overhead == 0 {
        "so larger packets are lost without an ICMP error".to_owned()
    } else {
        format!(
            "and {overhead} are for the encapsulation, so larger packets are fragmented, or lost where fragments are dropped"
        )
    };
    (*set > room).then(|| {
        let message = format!(
            "spec.mtu {set} of NetworkMode {name} is too large for link {link}: the MTU of the link is {mtu}, {consequence}; set spec.mtu to {room} or less, or leave it out"
        );
        Problem::note(format!("NetworkMode {name}"), message)
    })
}
