//! Restores the original values of sysctls.
//!
//! The sysctls of forwarding, and of router advertisements on a node that forwards, are restored only if no other pod network needs
//! them.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context;

use crate::apply::cni_config;
use crate::apply::sysctl::{Original, Originals};
use crate::commands::args::Paths;

/// Restores the sysctls that still have the value that the agent has set.
///
/// # Errors
/// The original values cannot be read, or the kernel refuses a value.
pub fn restore(paths: &Paths) -> anyhow::Result<()> {
    for (name, Original { was, set }) in to_restore(paths)? {
        let path = paths.sysctl_dir.join(&name);
        fs::write(&path, &was).with_context(|| format!("set {} to {was}", path.display()))?;
        println!("Restored parameter net/{name}: {was} instead of {set}.");
    }
    Ok(())
}

/// The sysctls to restore, one per line.
///
/// # Errors
/// The original values cannot be read.
pub fn changed(paths: &Paths) -> anyhow::Result<Vec<String>> {
    let changed = to_restore(paths)?.into_iter();
    Ok(changed
        .map(|(name, Original { was, set })| {
            format!("Parameter net/{name} is {set} and was {was}.")
        })
        .collect())
}

fn to_restore(paths: &Paths) -> anyhow::Result<BTreeMap<String, Original>> {
    let originals = Originals::new(&paths.run_dir).list();
    let mut originals = originals.context("read the original values of kernel parameters")?;
    let others = cni_config::others(&paths.cni_conf_dir);
    originals.retain(|name, original| {
        let now = fs::read_to_string(paths.sysctl_dir.join(name));
        now.is_ok_and(|now| now.trim() == original.set) && (others.is_empty() || !is_shared(name))
    });
    Ok(originals)
}

/// Whether pods of any network need the sysctl, or the node itself while it forwards.
fn is_shared(name: &str) -> bool {
    let suffixes = ["forward", "forwarding", "/accept_ra"];
    let mut suffixes = suffixes.iter();
    suffixes.any(|suffix| name.ends_with(suffix)) || name.starts_with("bridge/")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Node(tempfile::TempDir);

    impl Node {
        fn new() -> Self {
            let node = Self(tempfile::tempdir().unwrap());
            for (name, was, set) in [
                ("ipv4/ip_forward", "0", "1"),
                ("ipv4/conf/eth0/rp_filter", "1", "2"),
                ("ipv6/conf/eth0/accept_ra", "1", "2"),
                ("ipv6/conf/gone/accept_ra", "1", "2"),
            ] {
                Originals::new(node.0.path()).note(name, was, set).unwrap();
            }
            for (name, now) in [
                ("ipv4/ip_forward", "1\n"),
                ("ipv4/conf/eth0/rp_filter", "2\n"),
                ("ipv6/conf/eth0/accept_ra", "2\n"),
            ] {
                let path = node.path(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, now).unwrap();
            }
            node
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn paths(&self) -> Paths {
            Paths {
                run_dir: self.path(""),
                cni_conf_dir: self.path("cni"),
                sysctl_dir: self.path(""),
            }
        }

        fn values(&self) -> [String; 3] {
            let names = [
                "ipv4/ip_forward",
                "ipv4/conf/eth0/rp_filter",
                "ipv6/conf/eth0/accept_ra",
            ];
            names.map(|name| {
                let text = fs::read_to_string(self.path(name)).unwrap();
                text.trim().to_owned()
            })
        }
    }

    #[test]
    fn clean_restores_sysctls_and_ignores_missing_links() {
        let node = Node::new();
        assert_eq!(changed(&node.paths()).unwrap().len(), 3);
        restore(&node.paths()).unwrap();
        assert_eq!(node.values(), ["0", "1", "1"]);
        assert_eq!(changed(&node.paths()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn clean_keeps_sysctls_changed_by_others() {
        let node = Node::new();
        fs::write(node.path("ipv4/conf/eth0/rp_filter"), "0").unwrap();
        restore(&node.paths()).unwrap();
        assert_eq!(node.values(), ["0", "0", "1"]);
    }

    #[test]
    fn clean_keeps_forwarding_and_ra_next_to_other_network() {
        let node = Node::new();
        fs::create_dir(node.path("cni")).unwrap();
        fs::write(node.path("cni/20-other.conflist"), "{}").unwrap();
        restore(&node.paths()).unwrap();
        assert_eq!(node.values(), ["1", "1", "2"]);
    }
}
