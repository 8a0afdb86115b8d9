//! Whether what is configured fits the links that carry it.

use netweft_crds::{NodeMode, Transport};

use crate::desired::overhead;
use crate::inputs::Inputs;
use crate::inputs::host_facts::{Egress, Facts};
use crate::status::cause::Cause;
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
    (*set > room).then(|| {
        Problem::from(Cause::MtuTooLarge {
            mode: name.clone(),
            mtu: *set,
            link: link.clone(),
            link_mtu: *mtu,
            overhead,
        })
    })
}
