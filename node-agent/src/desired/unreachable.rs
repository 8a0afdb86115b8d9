//! Why a block of another node cannot be reached by a mode.

use std::net::IpAddr;

use ipnet::IpNet;
use netweft_crds::IpFamily;

/// Why there is no route. The message contains the remedy, if there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// One of the two nodes has no address of the block's family, which a next hop needs.
    #[error(
        "no route to {family} pods of node {peer}: node {without_address} has no {family} address, and NetworkMode {mode} uses node addresses as next hops; give the node an address, or use an encapsulation"
    )]
    NoNodeAddress {
        /// The block's family.
        family: IpFamily,
        /// The node that has the block.
        peer: String,
        /// The node without an address.
        without_address: String,
        /// The NetworkMode.
        mode: String,
    },
    /// The address of the other node is not on a link of this node.
    #[error(
        "no route to pods of node {peer}: its address {address} is not on the link of this node's {own} ({}), and NetworkMode {mode} uses node addresses as next hops; connect both nodes to one link, or set spec.mode overlay with spec.overlay.encapsulateWhen cross-subnet",
        link.as_deref().unwrap_or("unknown")
    )]
    NotOnLink {
        /// The node that has the block.
        peer: String,
        /// Its address.
        address: IpAddr,
        /// This node's address.
        own: IpAddr,
        /// The link of this node's address.
        link: Option<String>,
        /// The NetworkMode.
        mode: String,
    },
    /// The other node has no address of the outer family.
    #[error(
        "block {block} of node {peer} is not programmed: that node has no {family} address for the tunnels of NetworkMode {mode}"
    )]
    NoTunnelEndpoint {
        /// The block.
        block: IpNet,
        /// The node that has it.
        peer: String,
        /// The outer family.
        family: IpFamily,
        /// The NetworkMode.
        mode: String,
    },
    /// The tunnel does not carry the block's family.
    #[error(
        "block {block} of node {peer} is not programmed: NetworkMode {mode} has encapsulation ipip, which carries IPv4 in IPv4 only"
    )]
    NotCarriedByIpip {
        /// The block.
        block: IpNet,
        /// The node that has it.
        peer: String,
        /// The NetworkMode.
        mode: String,
    },
    /// A route to the block would take the default route of the node away.
    #[error(
        "block {block} of node {peer} is not programmed: it contains {gateway}, the default gateway of this node; delete the IPPool, and create one with another range"
    )]
    ContainsGateway {
        /// The block.
        block: IpNet,
        /// The node that has it.
        peer: String,
        /// The next hop of a default route of this node.
        gateway: IpAddr,
    },
    /// BIRD has no route to the block yet.
    #[error("there is no route to {0}")]
    NoRoute(IpNet),
}
