//! nft scripts in a namespace.

use crate::harness::command::feed;
use crate::lab::topology::namespace::Namespace;

/// Runs an nft script in a namespace.
///
/// # Errors
/// nft cannot be run or rejects the script.
pub fn run_script(namespace: &Namespace, script: &str) -> anyhow::Result<()> {
    feed(namespace.command("nft").args(["-f", "-"]), script)
}
