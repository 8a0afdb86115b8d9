//! Requests of pods for pools without a block on this node: the plugin writes them, the agent reports them to the operator.
//!
//! ```text
//!   /run/netweft/requests/5feceb66ffc86f38    {"version":1,"pools":["web"]}
//! ```
//!
//! There is one file for each list of pools; its name is a hash of the list. Every ADD that fails without a block rewrites
//! the file, so its modification time is the time of the last request. DEL does not delete it, because the runtime calls
//! DEL between two attempts for the same pod. A request that is not repeated expires.

use netweft_common::atomic_file;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Name of the directory in the one shared by agent and plugin.
pub const DIR: &str = "requests";
/// The age at which a request expires. The kubelet starts another attempt for a pod within two minutes.
const EXPIRY: Duration = Duration::from_secs(300);
/// The version of the format that this code writes and reads.
const VERSION: u32 = 1;

/// The directory of requests.
#[derive(Clone, Debug)]
pub struct BlockRequests {
    dir: PathBuf,
}

/// Pods need a first block of any of these pools.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockRequest {
    version: u32,
    /// Names of the pools, the preferred first.
    pub pools: Vec<String>,
}

impl BlockRequests {
    /// The requests in the directory shared by agent and plugin.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        Self {
            dir: run_dir.join(DIR),
        }
    }

    /// The directory of the requests.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a request, or renews it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn submit(&self, pools: &[String]) -> io::Result<()> {
        let request = BlockRequest {
            version: VERSION,
            pools: pools.to_vec(),
        };
        let mut name = String::new();
        for byte in Sha256::digest(pools.join(",")).iter().take(8) {
            // Writing to a String does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        fs::create_dir_all(&self.dir)?;
        atomic_file::replace(&self.dir.join(name), &serde_json::to_vec(&request)?)
    }

    /// The pending requests at `now`, in order. Deletes the files of requests that are met (a pool has a block, by
    /// `has_block`) or expired, and invalid files.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn pending(
        &self,
        has_block: impl Fn(&str) -> bool,
        now: SystemTime,
    ) -> io::Result<Vec<BlockRequest>> {
        let mut pending = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pending),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            match read(&path, now) {
                FileContent::Request(request)
                    if !request.pools.iter().any(|pool| has_block(pool)) =>
                {
                    pending.push(request);
                }
                FileContent::Temporary => {}
                // An ADD may renew the request at this moment. If its file is deleted, the next ADD writes it again.
                FileContent::Request(_) | FileContent::Invalid => drop(fs::remove_file(&path)),
            }
        }
        pending.sort();
        Ok(pending)
    }
}

/// What a file of the directory contains.
enum FileContent {
    Request(BlockRequest),
    /// A file that replaces another when it is complete.
    Temporary,
    /// An expired request, or another file.
    Invalid,
}

fn read(path: &Path, now: SystemTime) -> FileContent {
    let Ok(modified) = fs::metadata(path).and_then(|found| found.modified()) else {
        return FileContent::Invalid;
    };
    // A time in the future counts as now: the clock was set back.
    if now.duration_since(modified).unwrap_or_default() > EXPIRY {
        return FileContent::Invalid;
    }
    if path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
    {
        return FileContent::Temporary;
    }
    let text = fs::read(path).unwrap_or_default();
    match serde_json::from_slice::<BlockRequest>(&text) {
        Ok(request) if request.version == VERSION && !request.pools.is_empty() => {
            FileContent::Request(request)
        }
        _ => FileContent::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(requests: &BlockRequests, with_block: &str, after: u64) -> Vec<String> {
        let now = SystemTime::now() + Duration::from_secs(after);
        let found = requests.pending(|pool| pool == with_block, now).unwrap();
        found
            .iter()
            .map(|request| request.pools.join(" "))
            .collect()
    }

    #[test]
    fn block_request_is_pending_until_one_pool_has_a_block() {
        let dir = tempfile::tempdir().unwrap();
        let requests = BlockRequests::new(dir.path());
        assert!(pending(&requests, "", 0).is_empty(), "no directory yet");
        let submit = |pools: &[&str]| {
            let pools: Vec<String> = pools.iter().map(|pool| (*pool).to_owned()).collect();
            requests.submit(&pools).unwrap();
        };
        submit(&["b", "c"]);
        submit(&["a"]);
        submit(&["a"]);
        assert_eq!(pending(&requests, "", 0), ["a", "b c"]);
        assert_eq!(pending(&requests, "c", 0), ["a"]);
        assert_eq!(pending(&requests, "", 0), ["a"], "met requests are deleted");
    }

    #[test]
    fn block_request_not_repeated_expires() {
        let dir = tempfile::tempdir().unwrap();
        let requests = BlockRequests::new(dir.path());
        requests.submit(&["a".to_owned()]).unwrap();
        assert_eq!(pending(&requests, "", 299).len(), 1);
        assert_eq!(pending(&requests, "", 301).len(), 0);
        assert_eq!(pending(&requests, "", 0).len(), 0);
    }

    #[test]
    fn invalid_block_request_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let requests = BlockRequests::new(dir.path());
        requests.submit(&["a".to_owned()]).unwrap();
        let folder = dir.path().join(DIR);
        for (name, text) in [
            ("empty", ""),
            ("newer", r#"{"version":2,"pools":["a"]}"#),
            ("no-pools", r#"{"version":1,"pools":[]}"#),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
        fs::write(folder.join(".incomplete.7"), "{").unwrap();
        let files = || fs::read_dir(&folder).unwrap().count();
        assert_eq!((pending(&requests, "", 0), files()), (vec!["a".into()], 2));
        assert_eq!((pending(&requests, "", 301), files()), (vec![], 0));
    }
}
