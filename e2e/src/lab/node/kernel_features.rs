//! What the lab has to know of the kernel that it runs on.

use anyhow::bail;

use crate::harness::command::{run, words};

/// Whether this kernel can masquerade as the agent does it, by a table of nftables' family inet. It is tried in a network
/// namespace of its own.
///
/// # Errors
/// nft cannot be run, or fails for another reason than that.
pub fn masquerades() -> anyhow::Result<bool> {
    let tried = run(words("unshare --net nft add table inet try").env("LC_ALL", "C"))?;
    let said = String::from_utf8_lossy(&tried.stderr);
    if tried.status.success() {
        Ok(true)
    } else if said.contains("Operation not supported") {
        Ok(false)
    } else {
        bail!(
            "cannot tell whether this kernel has the nftables family inet: {}",
            said.trim()
        );
    }
}
