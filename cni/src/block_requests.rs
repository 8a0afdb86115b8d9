//! What pods have asked for that this node has no block for: the plugin leaves it, the agent tells the operator.
//!
//! ```text
//!   /run/netweft/requests/5feceb66ffc86f38    {"version":1,"pools":["web"]}
//! ```
//!
//! There is one file for every list of pools, named by a hash of it, and every ADD that fails for want of a block writes it anew:
//! its time of modification tells when a pod last asked. DEL leaves it, since the runtime calls DEL between two tries of the same
//! pod; what nobody asks for any more is forgotten.

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
/// A request that has not been made again for so long is forgotten. The kubelet tries a pod again within two minutes.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// The version of the format that this code writes and reads.
const VERSION: u32 = 1;

/// The directory of requests.
#[derive(Clone, Debug)]
pub struct Requests {
    dir: PathBuf,
}

/// Pods wait for a first block of any of these pools.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Request {
    version: u32,
    /// Names of the pools, the preferred first.
    pub pools: Vec<String>,
}

impl Requests {
    /// The requests in the directory shared by agent and plugin.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        Self {
            dir: run_dir.join(DIR),
        }
    }

    /// Makes a request, or makes it again.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn make(&self, pools: &[String]) -> io::Result<()> {
        let request = Request {
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

    /// The requests that still wait at `now`, in order. Those that are met, of which any pool is `served`, and those that nobody makes any
    /// more are removed, as is what is none.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn waiting(
        &self,
        served: impl Fn(&str) -> bool,
        now: SystemTime,
    ) -> io::Result<Vec<Request>> {
        let mut waiting = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(waiting),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            // Another try may make it anew meanwhile; if it is gone, the next one does.
            let forget = || drop(fs::remove_file(&path));
            match read(&path, now) {
                Found::Request(request) if !request.pools.iter().any(|pool| served(pool)) => {
                    waiting.push(request);
                }
                Found::UnderWay => {}
                Found::Request(_) | Found::Nothing => forget(),
            }
        }
        waiting.sort();
        Ok(waiting)
    }
}

/// What a file turns out to be.
enum Found {
    Request(Request),
    /// What a writer writes beside the file it replaces.
    UnderWay,
    /// It is too old, or none of ours.
    Nothing,
}

fn read(path: &Path, now: SystemTime) -> Found {
    let Ok(made) = fs::metadata(path).and_then(|found| found.modified()) else {
        return Found::Nothing;
    };
    // One that seems to be from the future is young: the clock was put back.
    if now.duration_since(made).unwrap_or_default() > FORGOTTEN {
        return Found::Nothing;
    }
    if path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
    {
        return Found::UnderWay;
    }
    let text = fs::read(path).unwrap_or_default();
    match serde_json::from_slice::<Request>(&text) {
        Ok(request) if request.version == VERSION && !request.pools.is_empty() => {
            Found::Request(request)
        }
        _ => Found::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(requests: &Requests, served: &str, after: u64) -> Vec<String> {
        let now = SystemTime::now() + Duration::from_secs(after);
        let found = requests.waiting(|pool| pool == served, now).unwrap();
        found
            .iter()
            .map(|request| request.pools.join(" "))
            .collect()
    }

    #[test]
    fn block_request_waits_until_one_pool_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let requests = Requests::new(dir.path());
        assert!(waiting(&requests, "", 0).is_empty(), "no directory yet");
        let make = |pools: &[&str]| {
            let pools: Vec<String> = pools.iter().map(|pool| (*pool).to_owned()).collect();
            requests.make(&pools).unwrap();
        };
        make(&["b", "c"]);
        make(&["a"]);
        make(&["a"]);
        assert_eq!(waiting(&requests, "", 0), ["a", "b c"]);
        assert_eq!(waiting(&requests, "c", 0), ["a"]);
        assert_eq!(waiting(&requests, "", 0), ["a"], "what is met is removed");
    }

    #[test]
    fn block_request_not_repeated_expires() {
        let dir = tempfile::tempdir().unwrap();
        let requests = Requests::new(dir.path());
        requests.make(&["a".to_owned()]).unwrap();
        assert_eq!(waiting(&requests, "", 299).len(), 1);
        assert_eq!(waiting(&requests, "", 301).len(), 0);
        assert_eq!(waiting(&requests, "", 0).len(), 0);
    }

    #[test]
    fn invalid_block_request_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let requests = Requests::new(dir.path());
        requests.make(&["a".to_owned()]).unwrap();
        let folder = dir.path().join(DIR);
        for (name, text) in [
            ("empty", ""),
            ("later", r#"{"version":2,"pools":["a"]}"#),
            ("nothing", r#"{"version":1,"pools":[]}"#),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
        fs::write(folder.join(".half.7"), "{").unwrap();
        let files = || fs::read_dir(&folder).unwrap().count();
        assert_eq!((waiting(&requests, "", 0), files()), (vec!["a".into()], 2));
        assert_eq!((waiting(&requests, "", 301), files()), (vec![], 0));
    }
}
