//! The original values of the sysctls of the node, so that `clean` can restore them. The file is in the run directory, because sysctls
//! do not outlive a boot either.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use netweft_common::atomic_file;
use netweft_netstate::model::LinkName;
use netweft_netstate::owner::is_netweft_link;
use serde::{Deserialize, Serialize};

/// Name of the file in the run directory.
const FILE: &str = "parameters.json";

/// One sysctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// The original value.
    pub was: String,
    /// The value that the agent has written.
    pub set: String,
}

/// The file.
#[derive(Debug)]
pub struct Originals {
    file: PathBuf,
}

impl Originals {
    /// The file in `run_dir`.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        let file = run_dir.join(FILE);
        Self { file }
    }

    /// By path below `/proc/sys/net`.
    ///
    /// # Errors
    /// The file cannot be read. A missing file is no error.
    pub fn list(&self) -> io::Result<BTreeMap<String, Original>> {
        match fs::read(&self.file) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    /// Saves the value `was` before `set` is written. The first value is kept. Sysctls of links of netweft disappear with the
    /// link.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn note(&self, name: &str, was: &str, set: &str) -> io::Result<()> {
        if is_of_netweft_link(name) {
            return Ok(());
        }
        let mut all = self.list()?;
        let was = all.get(name).map_or(was, |saved| &saved.was).to_owned();
        let set = set.to_owned();
        let saved = Original { was, set };
        if all.get(name) == Some(&saved) {
            return Ok(());
        }
        all.insert(name.to_owned(), saved);
        atomic_file::replace(&self.file, &serde_json::to_vec(&all)?)
    }
}

fn is_of_netweft_link(name: &str) -> bool {
    let mut parts = name.split('/').skip_while(|part| *part != "conf").skip(1);
    let link = parts.next().and_then(|link| link.parse::<LinkName>().ok());
    link.is_some_and(|link| is_netweft_link(&link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_sysctl_is_saved_once_but_not_of_own_links() {
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::new(dir.path());
        assert_eq!(originals.list().unwrap(), BTreeMap::new());
        for (name, was, set) in [
            ("ipv4/ip_forward", "0", "1"),
            ("ipv4/conf/nw-vx4096/rp_filter", "0", "2"),
            ("ipv4/conf/nw0123456789a/rp_filter", "0", "2"),
            ("ipv4/conf/eth0/rp_filter", "1", "2"),
            // Another program has changed the value, and the agent has restored it.
            ("ipv4/ip_forward", "7", "1"),
        ] {
            originals.note(name, was, set).unwrap();
        }
        let original = |was: &str, set: &str| Original {
            was: was.to_owned(),
            set: set.to_owned(),
        };
        let expected = [
            ("ipv4/ip_forward".to_owned(), original("0", "1")),
            ("ipv4/conf/eth0/rp_filter".to_owned(), original("1", "2")),
        ];
        assert_eq!(originals.list().unwrap(), expected.into());
    }
}
