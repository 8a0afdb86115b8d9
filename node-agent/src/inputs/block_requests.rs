//! What pods have asked for that this node has no block for, told in the status.

use std::path::Path;
use std::time::SystemTime;

use netweft_cni::block_requests::Requests;
use netweft_cni::node::NodeConfig;
use netweft_crds::BlockRequest;

use netweft_common::error_chain;

/// Most that a status tells of, as the API has it.
const TOLD: usize = 64;

/// What pods wait for, now that the plugin knows of the blocks in `plugin`.
///
/// # Errors
/// The requests cannot be listed; in a sentence.
pub fn waiting(run_dir: &Path, plugin: &NodeConfig) -> Result<Vec<BlockRequest>, String> {
    let served = |name: &str| {
        let mut pools = plugin.pools.iter();
        pools.any(|pool| pool.name == name && !pool.blocks.is_empty())
    };
    let waiting = Requests::new(run_dir).waiting(served, SystemTime::now());
    let waiting = waiting.map_err(|error| {
        let dir = run_dir.display();
        format!(
            "list the requests of pods for blocks in {dir}: {}",
            error_chain(&error)
        )
    })?;
    let told = waiting.into_iter().take(TOLD);
    let told = told.map(|request| BlockRequest {
        pools: request.pools.into_iter().take(TOLD).collect(),
    });
    Ok(told.collect())
}
