//! Keeping kernel parameters as they should be.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use netweft_netstate::model::LinkName;
use tracing::info;

/// A parameter could not be set.
#[derive(Debug, thiserror::Error)]
#[error("set {path} to {value}")]
pub struct SysctlError {
    path: PathBuf,
    value: String,
    source: io::Error,
}

/// Set those of `wanted` (values by path below `root`) that differ. One failure does not stop the others.
///
/// Links of `keep_listening` come first: when forwarding is switched on the kernel drops the default routes that it has
/// learnt from router advertisements, unless the link's `accept_ra` is 2 (`addrconf_fixup_forwarding`).
pub fn ensure(
    root: &Path,
    keep_listening: &BTreeSet<LinkName>,
    wanted: &BTreeMap<String, String>,
) -> Vec<SysctlError> {
    let listening = keep_listening
        .iter()
        .filter_map(|link| listen_on(root, link).err());
    let mut errors: Vec<SysctlError> = listening.collect();
    errors.extend(
        wanted
            .iter()
            .filter_map(|(name, value)| ensure_one(&root.join(name), value).err()),
    );
    errors
}

/// A link that listens unless it forwards (1) listens in any case (2); one that does not listen (0) goes on so.
fn listen_on(root: &Path, link: &LinkName) -> Result<(), SysctlError> {
    let path = root.join(format!("ipv6/conf/{link}/accept_ra"));
    match std::fs::read_to_string(&path) {
        Ok(found) if found.trim() == "1" => ensure_one(&path, "2"),
        // A link without IPv6 has learnt nothing.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn ensure_one(path: &Path, value: &str) -> Result<(), SysctlError> {
    let failed = |source| SysctlError {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    };
    let found = std::fs::read_to_string(path).map_err(failed)?;
    if found.trim() == value {
        return Ok(());
    }
    std::fs::write(path, value).map_err(failed)?;
    info!(parameter = %path.display(), from = found.trim(), to = value, "kernel parameter set");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_and_failures_do_not_stop_the_rest() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("b"), "0\n").unwrap();
        let wanted = BTreeMap::from([("a/missing".into(), "1".into()), ("b".into(), "1".into())]);
        let errors = ensure(root.path(), &BTreeSet::new(), &wanted);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().contains("a/missing to 1"));
        assert_eq!(std::fs::read_to_string(root.path().join("b")).unwrap(), "1");
    }

    #[test]
    fn an_uplink_goes_on_listening_to_routers_and_one_that_did_not_does_not_begin() {
        let root = tempfile::tempdir().unwrap();
        let file = |link: &str| root.path().join("ipv6/conf").join(link).join("accept_ra");
        for (link, value) in [("eth0", "1\n"), ("eth1", "0\n")] {
            std::fs::create_dir_all(file(link).parent().unwrap()).unwrap();
            std::fs::write(file(link), value).unwrap();
        }
        let links = ["eth0", "eth1", "no-ipv6"].map(|link| link.parse().unwrap());
        let errors = ensure(root.path(), &links.into(), &BTreeMap::new());
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(std::fs::read_to_string(file("eth0")).unwrap(), "2");
        assert_eq!(std::fs::read_to_string(file("eth1")).unwrap(), "0\n");
    }
}
