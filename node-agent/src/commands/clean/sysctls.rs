//! Kernel parameters as they were before.
//!
//! Whether the node forwards at all is put back only where nobody else's pods need it, and with it whether its links listen to routers
//! although it forwards.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context;

use crate::apply::cni_config;
use crate::apply::sysctl::{Original, Originals};
use crate::commands::args::Paths;

/// Sets those that still are as the agent has set them to what they were.
///
/// # Errors
/// What they were cannot be read, or the kernel refuses.
pub fn put_back(paths: &Paths) -> anyhow::Result<()> {
    for (name, Original { was, set }) in ours(paths)? {
        let path = paths.sysctl_dir.join(&name);
        fs::write(&path, &was).with_context(|| format!("set {} to {was}", path.display()))?;
        println!("Done: parameter net/{name} is {was} again and no more {set}.");
    }
    Ok(())
}

/// What there is to put back, in sentences.
///
/// # Errors
/// What they were cannot be read.
pub fn changed(paths: &Paths) -> anyhow::Result<Vec<String>> {
    let ours = ours(paths)?.into_iter();
    Ok(ours
        .map(|(name, Original { was, set })| {
            format!("Parameter net/{name} is {set} and was {was}.")
        })
        .collect())
}

fn ours(paths: &Paths) -> anyhow::Result<BTreeMap<String, Original>> {
    let originals = Originals::new(&paths.run_dir).list();
    let mut originals = originals.context("read what kernel parameters were")?;
    let others = cni_config::others(&paths.cni_conf_dir);
    originals.retain(|name, original| {
        let now = fs::read_to_string(paths.sysctl_dir.join(name));
        now.is_ok_and(|now| now.trim() == original.set) && (others.is_empty() || !is_shared(name))
    });
    Ok(originals)
}

/// Whether pods of any network need it, or the node itself while such pods are forwarded.
fn is_shared(name: &str) -> bool {
    let ends = ["forward", "forwarding", "/accept_ra"];
    ends.iter().any(|end| name.ends_with(end)) || name.starts_with("bridge/")
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
        put_back(&node.paths()).unwrap();
        assert_eq!(node.values(), ["0", "1", "1"]);
        assert_eq!(changed(&node.paths()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn clean_keeps_sysctls_changed_by_others() {
        let node = Node::new();
        fs::write(node.path("ipv4/conf/eth0/rp_filter"), "0").unwrap();
        put_back(&node.paths()).unwrap();
        assert_eq!(node.values(), ["0", "0", "1"]);
    }

    #[test]
    fn clean_keeps_forwarding_and_ra_next_to_other_network() {
        let node = Node::new();
        fs::create_dir(node.path("cni")).unwrap();
        fs::write(node.path("cni/20-other.conflist"), "{}").unwrap();
        put_back(&node.paths()).unwrap();
        assert_eq!(node.values(), ["1", "1", "2"]);
    }
}
