//! Keeps the nftables tables in their desired state.
//!
//! After a load, the listing of the table and a digest of the loaded text are saved. While both are unchanged, nothing is written;
//! otherwise the whole table is replaced in one transaction.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use netweft_common::atomic_file;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::apply::subprocess;
use crate::apply::subprocess::ProgramError;

/// The name of both tables.
pub const TABLE: &str = "netweft";

/// The family of a table, as nft writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// IPv4 and IPv6.
    Inet,
    /// Frames that pass a bridge.
    Bridge,
}

impl TableFamily {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Inet, Self::Bridge];

    /// The word of nft.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        }
    }

    /// The table in messages.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Inet => "nft table inet netweft",
            Self::Bridge => "nft table bridge netweft",
        }
    }

    /// The file in the run directory that holds the last listing.
    fn file(self) -> &'static str {
        match self {
            Self::Inet => "nft.loaded",
            Self::Bridge => "nft-bridge.loaded",
        }
    }
}
/// Time limit of nft. It reads all tables of the node, with thousands of rules where kube-proxy has many Services.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a table is not in its desired state.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program did not run to its end.
    #[error(transparent)]
    Run(#[from] ProgramError),
    /// The kernel does not support tables of the family.
    #[error("this kernel does not support this family of nftables")]
    NoFamily,
    /// The program refused the table.
    #[error("nft refused the table: {0}")]
    Refused(String),
    /// nft did not report whether the table exists.
    #[error("{0}: {1}")]
    Unlisted(String, String),
    /// The listing cannot be saved.
    #[error("write {0}")]
    SaveFailed(PathBuf, #[source] io::Error),
}

/// What was necessary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// The table was loaded, instead of another or as a new one.
    Loaded {
        /// Whether there was another.
        replaced: bool,
    },
    /// The table was removed.
    Removed,
}

/// A table of this node.
#[derive(Debug)]
pub struct Nft {
    family: TableFamily,
    file: PathBuf,
}

impl Nft {
    /// The table of `family`, whose listing is saved in `run_dir`.
    #[must_use]
    pub fn new(run_dir: &Path, family: TableFamily) -> Self {
        let file = run_dir.join(family.file());
        Self { family, file }
    }

    /// The family of the table.
    #[must_use]
    pub fn family(&self) -> TableFamily {
        self.family
    }

    /// Makes `text` the table; an empty text removes it.
    ///
    /// # Errors
    /// nft is missing, refuses the text, the listing cannot be saved, or the kernel lacks the family.
    pub async fn ensure(&self, text: &str) -> Result<Change, NftError> {
        if text.is_empty() {
            return self.remove().await;
        }
        let saved = std::fs::read_to_string(&self.file).unwrap_or_default();
        let found = self.list().await?;
        if !saved.is_empty() && saved == saved_listing(text, &found) {
            return Ok(Change::None);
        }
        load(text).await?;
        let listing = self.list().await?;
        atomic_file::replace(&self.file, saved_listing(text, &listing).as_bytes())
            .map_err(|error| NftError::SaveFailed(self.file.clone(), error))?;
        Ok(Change::Loaded {
            replaced: !found.is_empty(),
        })
    }

    /// Whether the table is `text` as it was loaded; with an empty text, whether there is no table.
    ///
    /// # Errors
    /// nft is missing or does not report the table.
    pub async fn is(&self, text: &str) -> Result<bool, NftError> {
        let found = self.list().await?;
        let saved = std::fs::read_to_string(&self.file).unwrap_or_default();
        Ok(if text.is_empty() {
            found.is_empty()
        } else {
            saved == saved_listing(text, &found)
        })
    }

    async fn remove(&self) -> Result<Change, NftError> {
        if self.list().await?.is_empty() {
            return Ok(Change::None);
        }
        load(&format!("delete table {} {TABLE}\n", self.family.name())).await?;
        Ok(Change::Removed)
    }

    /// The kernel's table without counters, empty if there is none.
    async fn list(&self) -> Result<String, NftError> {
        listing(&["-s", "list", "table", self.family.name(), TABLE]).await
    }
}

/// Any table with its handles, empty if there is none.
///
/// # Errors
/// nft is missing or does not report the table.
pub async fn list(family: &str, table: &str) -> Result<String, NftError> {
    listing(&["-a", "list", "table", family, table]).await
}

/// What nft prints as JSON (libnftables-json(5)).
///
/// # Errors
/// nft is missing or does not report the table.
pub async fn list_json(arguments: &[&str]) -> Result<String, NftError> {
    let arguments = [&["-j", "-t"], arguments].concat();
    let listed = listing(&arguments).await?;
    Ok(if listed.is_empty() {
        r#"{"nftables": []}"#.to_owned()
    } else {
        listed
    })
}

async fn listing(arguments: &[&str]) -> Result<String, NftError> {
    let output = nft(arguments, "").await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else if stderr.contains("No such file or directory") || lacks_family(&stderr) {
        Ok(String::new())
    } else {
        let command = command_line(arguments);
        Err(NftError::Unlisted(command, stderr.trim().to_owned()))
    }
}

async fn nft(arguments: &[&str], input: &str) -> Result<Output, ProgramError> {
    let mut command = Command::new("nft");
    command.args(arguments);
    subprocess::run(&command_line(arguments), command, input.as_bytes(), TIMEOUT).await
}

fn command_line(arguments: &[&str]) -> String {
    format!("nft {}", arguments.join(" "))
}

/// Whether nft says that the kernel has no such family, or no nftables at all. What a rule lacks is said of the rule's
/// line and not of the table's.
fn lacks_family(stderr: &str) -> bool {
    stderr.contains("Protocol not supported")
        || stderr.contains("Operation not supported\nadd table ")
        || stderr.contains("Operation not supported\nlist table ")
}

fn saved_listing(text: &str, listing: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let mark: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("# loaded from {mark}\n{listing}")
}

/// Runs a script.
///
/// # Errors
/// nft is missing or refuses.
pub async fn load(text: &str) -> Result<(), NftError> {
    run_script(&["-f", "-"], text).await
}

/// Checks whether the kernel accepts a script; nothing is changed.
///
/// # Errors
/// As [`load`].
pub async fn check_script(text: &str) -> Result<(), NftError> {
    run_script(&["-c", "-f", "-"], text).await
}

async fn run_script(arguments: &[&str], text: &str) -> Result<(), NftError> {
    let output = nft(arguments, text).await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else if lacks_family(&stderr) {
        Err(NftError::NoFamily)
    } else {
        Err(NftError::Refused(stderr.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of nft 1.0.6 on kernels without the family, without nf_tables, and without the expression of a rule.
    #[test]
    fn missing_nft_family_differs_from_refused_rule() {
        let family = "/dev/stdin:1:1-23: Error: Could not process rule: Operation not supported\nadd table inet netweft\n^^^^^^^^^^^^^^^^^^^^^^^\n/dev/stdin:2:19-25: Error: Could not process rule: No such file or directory\ndelete table inet netweft\n";
        let nothing = "mnl.c:60: Unable to initialize Netlink socket: Protocol not supported\n";
        let rule = "/dev/stdin:14:3-44: Error: Could not process rule: Operation not supported\n\t\tip saddr 10.0.0.0/8 masquerade fully-random\n";
        assert!(lacks_family(family) && lacks_family(nothing));
        assert!(!lacks_family(rule));
    }
}
