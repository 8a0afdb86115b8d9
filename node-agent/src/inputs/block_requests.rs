//! The requests of pods for pools without a block on this node, for the status.

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

/// The requests that the blocks in `plugin` do not meet.
///
/// # Errors
/// The requests cannot be listed.
pub fn unmet(
    run_dir: &Path,
    plugin: &NodeConfig,
) -> Result<Vec<BlockRequest>, BlockRequestsUnlisted> {
    let has_block = |name: &str| {
        let mut pools = plugin.pools.iter();
        pools.any(|pool| pool.name == name && !pool.blocks.is_empty())
    };
    let unmet = BlockRequests::new(run_dir).pending(has_block, SystemTime::now());
    let unmet = unmet.map_err(|source| BlockRequestsUnlisted {
        dir: run_dir.to_owned(),
        source,
    })?;
    let reported = unmet.into_iter().take(MAX_REPORTED);
    let reported = reported.map(|request| BlockRequest {
        pools: request.pools.into_iter().take(MAX_REPORTED).collect(),
    });
    Ok(reported.collect())
}
