//! Why a pod gets no address, and what to do about it.

use std::fmt;

use super::POOLS_ANNOTATION;
use crate::node::PoolConfig;

/// Why a pod gets no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// `node.json` does not list the namespace yet, or the runtime passes none.
    #[error("{}", unknown_namespace(.0.as_deref()))]
    UnknownNamespace(Option<String>),
    /// No pool on this node is for pods of this namespace.
    #[error(
        "no IPPool on this node gives addresses to pods of {}: add the namespace to the namespaceSelector of an IPPool, \
         add the node to its nodeSelector, or create an IPPool",
        .0.as_ref().map_or("an unknown namespace".to_owned(), |name| format!("namespace {name}"))
    )]
    NoPool(Option<String>),
    /// The pod requests a pool that is not for it.
    #[error(
        "annotation {POOLS_ANNOTATION} requests IPPool {requested}, which gives no addresses to this pod: {}",
        if allowed.is_empty() {
            "remove the annotation, since no IPPool on this node gives addresses to this pod".to_owned()
        } else {
            format!("request {}", allowed.join(" or "))
        }
    )]
    NotForThisPod {
        /// The pool that the pod requests.
        requested: String,
        /// The pools that the pod can request.
        allowed: Vec<String>,
    },
    /// No address of a family is free.
    #[error(
        "no free address in {}: a later attempt succeeds when the operator has assigned a block to this node or a pod \
         has ended; if all blocks of an IPPool are in use, add an IPPool",
        .0.iter().map(Shortage::to_string).collect::<Vec<_>>().join(", and none in ")
    )]
    NoAddress(Vec<Shortage>),
}

fn unknown_namespace(namespace: Option<&str>) -> String {
    match namespace {
        Some(name) => format!(
            "IPPools are selected by namespace, and netweft-agent has not listed namespace {name} in node.json yet; the \
             log of netweft-agent has the reason if this error persists"
        ),
        None => "IPPools are selected by namespace, and the container runtime passes no K8S_POD_NAMESPACE in CNI_ARGS: \
                 use a runtime that passes it, or IPPools without namespaceSelector"
            .to_owned(),
    }
}

/// A family without a free address for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The pools for the pod, with the reason why each has no address.
    pools: String,
    /// The enabled pools without a block on this node: a block of any of them ends the shortage.
    pub without_block: Vec<String>,
}

impl Shortage {
    /// The shortage in all `pools` of a family.
    pub(super) fn new(pools: &[&PoolConfig]) -> Self {
        let without_block = pools
            .iter()
            .filter(|pool| !pool.disabled && pool.blocks.is_empty())
            .map(|pool| pool.name.clone());
        let pools: Vec<String> = pools.iter().map(|pool| describe(pool)).collect();
        Self {
            pools: pools.join(", "),
            without_block: without_block.collect(),
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pools)
    }
}

fn describe(pool: &PoolConfig) -> String {
    let PoolConfig { name, blocks, .. } = pool;
    if pool.disabled {
        return format!("IPPool {name} (disabled)");
    }
    let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
    match &blocks[..] {
        [] => format!("IPPool {name} (no block on this node)"),
        [block] => format!("IPPool {name} (block {block})"),
        blocks => format!("IPPool {name} (blocks {})", blocks.join(", ")),
    }
}
