//! Features of the kernel that the lab depends on.

use anyhow::bail;

use crate::harness::command::{run, words};

/// Whether this kernel supports the agent's masquerading, which needs the nftables family inet. The test runs in a new network namespace.
///
/// # Errors
/// nft cannot be run, or fails with another error than a missing family.
pub fn masquerades() -> anyhow::Result<bool> {
    let result = run(words("unshare --net nft add table inet try").env("LC_ALL", "C"))?;
    let error = String::from_utf8_lossy(&result.stderr);
    if result.status.success() {
        Ok(true)
    } else if error.contains("Operation not supported") {
        Ok(false)
    } else {
        bail!(
            "cannot detect whether this kernel has the nftables family inet: {}",
            error.trim()
        );
    }
}
