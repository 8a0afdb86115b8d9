//! Requests of pods for pools without a block on this node, which the status reports.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use netweft_cni::block_requests::BlockRequests;
use netweft_cni::node::NodeConfig;
use netweft_crds::BlockRequest;

/// Maximum number in a status, as in the CRD.
const MAX_REPORTED: usize = 64;

/// The requests of pods for blocks cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("list the requests of pods for blocks in {}", dir.display())]
pub struct BlockRequestsUnlisted {
    dir: PathBuf,
    source: io::Error,
}

/// What pods wait for, now that the plugin knows of the blocks in `plugin`.
///
/// # Errors
/// The requests cannot be listed.
pub fn waiting(
    run_dir: &Path,
    plugin: &NodeConfig,
) -> Result<Vec<BlockRequest>, BlockRequestsUnlisted> {
    let served = |name: &str| {
        let mut pools = plugin.pools.iter();
        pools.any(|pool| pool.name == name && !pool.blocks.is_empty())
    };
    let waiting = BlockRequests::new(run_dir).pending(served, SystemTime::now());
    let waiting = waiting.map_err(|source| BlockRequestsUnlisted {
        dir: run_dir.to_owned(),
        source,
    })?;
    let told = waiting.into_iter().take(MAX_REPORTED);
    let told = told.map(|request| BlockRequest {
        pools: request.pools.into_iter().take(MAX_REPORTED).collect(),
    });
    Ok(told.collect())
}
