//! Keeping the nft table as it should be.
//!
//! The kernel's own listing of our table is remembered when we have loaded it, beside a mark of the text we loaded. As
//! long as both still hold, nothing is touched; otherwise the whole table is replaced in one transaction.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Why the table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program could not be started or spoken to.
    #[error("run nft")]
    Run(#[source] io::Error),
    /// The program refused the table.
    #[error("nft refused the table: {0}")]
    Refused(String),
    /// The remembered listing could not be written.
    #[error("write {0}")]
    Remember(PathBuf, #[source] io::Error),
}

/// The table of this node.
#[derive(Debug)]
pub struct Nft {
    memory: PathBuf,
}

impl Nft {
    /// The table whose listing is remembered in `run_dir`.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        Self {
            memory: run_dir.join("nft.loaded"),
        }
    }

    /// Make the table `text`; returns whether it had to be loaded.
    ///
    /// # Errors
    /// nft is missing, refuses the text, or the listing cannot be remembered.
    pub async fn ensure(&self, text: &str) -> Result<bool, NftError> {
        let remembered = std::fs::read_to_string(&self.memory).unwrap_or_default();
        if !remembered.is_empty() && remembered == memory(text, &self.list().await?) {
            return Ok(false);
        }
        load(text).await?;
        let listing = self.list().await?;
        let aside = self.memory.with_extension("new");
        std::fs::write(&aside, memory(text, &listing))
            .and_then(|()| std::fs::rename(&aside, &self.memory))
            .map_err(|error| NftError::Remember(self.memory.clone(), error))?;
        Ok(true)
    }

    /// The kernel's table without counters, empty if there is none.
    async fn list(&self) -> Result<String, NftError> {
        let output = Command::new("nft")
            .args(["-s", "list", "table", "inet", "netweft"])
            .output()
            .await;
        Ok(String::from_utf8_lossy(&output.map_err(NftError::Run)?.stdout).into_owned())
    }
}

fn memory(text: &str, listing: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let mark: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("# loaded from {mark}\n{listing}")
}

async fn load(text: &str) -> Result<(), NftError> {
    let mut command = Command::new("nft");
    command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(NftError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(text.as_bytes())
            .await
            .map_err(NftError::Run)?;
    }
    let output = child.wait_with_output().await.map_err(NftError::Run)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(NftError::Refused(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }
}
