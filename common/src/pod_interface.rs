//! How pods are connected to their node: a term of the API (`IPPool.spec.podInterface`) and of `node.json`, which the
//! agent writes and the plugin reads. The plugin must not depend on the crate of the API.

use serde::{Deserialize, Serialize};

/// How a pod is connected to its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodInterface {
    /// A veth pair and a host route for each pod; no layer 2 between pods.
    #[default]
    Routed,
    /// A veth pair on a bridge, as with Docker.
    Bridge,
}
