//! Keeping kernel parameters as they should be.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use netweft_netstate::model::LinkName;
use tracing::info;

/// A parameter could not be set.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The kernel refused, or does not know it.
    #[error("set {path} to {value}")]
    Set {
        /// The parameter.
        path: PathBuf,
        /// What it should be.
        value: String,
        /// The cause.
        source: io::Error,
    },
    /// Pods on a bridge need a part of the kernel that is not there.
    #[error(
        "there is no {0}, without which Services fail between pods on the node's bridge: load the kernel module br_netfilter (modprobe br_netfilter, and for the next boot a line in /etc/modules-load.d)"
    )]
    NoBridgeNetfilter(PathBuf),
}

/// Set those of `wanted` (values by path below `root`) that differ. One failure does not stop the others.
///
/// Links of `keep_listening` come first: when forwarding is switched on the kernel drops the default routes that it has
/// learnt from router advertisements, unless the link's `accept_ra` is 2 (`addrconf_fixup_forwarding`).
pub fn ensure(
    root: &Path,
    keep_listening: &BTreeSet<LinkName>,
    loosen: &BTreeSet<LinkName>,
    wanted: &BTreeMap<String, String>,
) -> Vec<SysctlError> {
    let loosened = loosen
        .iter()
        .filter_map(|link| loosen_filter(root, link).err());
    let listening = keep_listening
        .iter()
        .filter_map(|link| listen_on(root, link).err());
    // A kernel without IPv6 has none of its parameters and needs none.
    let needed = |name: &&String| !name.starts_with("ipv6/") || root.join("ipv6").exists();
    let names = wanted.keys().filter(needed);
    let set = names.filter_map(|name| {
        let (path, value) = (root.join(name), wanted.get(name)?);
        let source = ensure_one(&path, value).err()?;
        let absent = source.kind() == io::ErrorKind::NotFound;
        Some(if absent && name.starts_with("bridge/") {
            SysctlError::NoBridgeNetfilter(path)
        } else {
            not_set(path, value, source)
        })
    });
    listening.chain(loosened).chain(set).collect()
}

/// A reverse path filter that is strict (1) becomes loose (2, RFC 3704); one that is off stays so. The kernel takes the larger
/// of the link's value and that of `all` (`IN_DEV_RPFILTER`), so the link's own is enough.
fn loosen_filter(root: &Path, link: &LinkName) -> Result<(), SysctlError> {
    let path = |name: &str| root.join(format!("ipv4/conf/{name}/rp_filter"));
    let value = |name: &str| std::fs::read_to_string(path(name)).unwrap_or_default();
    let strict = ["all", link.as_str()].map(|name| value(name).trim() == "1");
    let loose = ["all", link.as_str()].map(|name| value(name).trim() == "2");
    if !strict.contains(&true) || loose.contains(&true) {
        return Ok(());
    }
    let path = path(link.as_str());
    ensure_one(&path, "2").map_err(|source| not_set(path, "2", source))
}

/// Lets the group of this process ask by ICMP echo without a capability, as most distributions do for everybody.
///
/// # Errors
/// The kernel refuses.
pub fn allow_echo(root: &Path) -> Result<(), SysctlError> {
    let path = root.join("ipv4/ping_group_range");
    let group = nix::unistd::getegid().as_raw();
    let range = std::fs::read_to_string(&path).unwrap_or_default();
    let mut ends = range.split_whitespace().map(str::parse::<u32>);
    if let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next())
        && (first..=last).contains(&group)
    {
        return Ok(());
    }
    let value = format!("{group} {group}");
    ensure_one(&path, &value).map_err(|source| not_set(path, &value, source))
}

/// A link that listens unless it forwards (1) listens in any case (2); one that does not listen (0) goes on so.
fn listen_on(root: &Path, link: &LinkName) -> Result<(), SysctlError> {
    let path = root.join(format!("ipv6/conf/{link}/accept_ra"));
    match std::fs::read_to_string(&path) {
        Ok(found) if found.trim() == "1" => {
            ensure_one(&path, "2").map_err(|source| not_set(path, "2", source))
        }
        // A link without IPv6 has learnt nothing.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn not_set(path: PathBuf, value: &str, source: io::Error) -> SysctlError {
    let value = value.to_owned();
    SysctlError::Set {
        path,
        value,
        source,
    }
}

fn ensure_one(path: &Path, value: &str) -> io::Result<()> {
    let found = std::fs::read_to_string(path)?;
    if found.trim() == value {
        return Ok(());
    }
    std::fs::write(path, value)?;
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
        let errors = ensure(root.path(), &BTreeSet::new(), &BTreeSet::new(), &wanted);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().contains("a/missing to 1"));
        assert_eq!(std::fs::read_to_string(root.path().join("b")).unwrap(), "1");
    }

    #[test]
    fn who_may_ask_already_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("ipv4/ping_group_range");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let group = nix::unistd::getegid().as_raw();
        let own = format!("{group} {group}");
        for (before, after) in [
            ("1\t0", own.as_str()),
            ("0\t2147483647", "0\t2147483647"),
            ("", own.as_str()),
        ] {
            std::fs::write(&file, before).unwrap();
            allow_echo(root.path()).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), after);
        }
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
        let errors = ensure(
            root.path(),
            &links.into(),
            &BTreeSet::new(),
            &BTreeMap::new(),
        );
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(std::fs::read_to_string(file("eth0")).unwrap(), "2");
        assert_eq!(std::fs::read_to_string(file("eth1")).unwrap(), "0\n");
    }

    #[test]
    fn a_strict_filter_becomes_loose_and_no_other_is_touched() {
        let root = tempfile::tempdir().unwrap();
        let file = |link: &str| root.path().join("ipv4/conf").join(link).join("rp_filter");
        let run = |all: &str, own: &str| {
            for (link, value) in [("all", all), ("eth0", own)] {
                std::fs::create_dir_all(file(link).parent().unwrap()).unwrap();
                std::fs::write(file(link), value).unwrap();
            }
            let links = ["eth0".parse().unwrap()].into();
            let errors = ensure(root.path(), &BTreeSet::new(), &links, &BTreeMap::new());
            assert!(errors.is_empty(), "{errors:?}");
            std::fs::read_to_string(file("eth0")).unwrap()
        };
        assert_eq!(run("0", "1"), "2");
        assert_eq!(run("1", "0"), "2");
        assert_eq!(run("0", "0"), "0", "off stays off");
        assert_eq!(run("2", "1"), "1", "it is loose already");
    }

    #[test]
    fn what_a_module_would_bring_is_named_and_ipv6_is_not_missed() {
        let root = tempfile::tempdir().unwrap();
        let wanted = |name: &str| BTreeMap::from([(name.to_owned(), "1".to_owned())]);
        let errors = ensure(
            root.path(),
            &BTreeSet::new(),
            &BTreeSet::new(),
            &wanted("bridge/bridge-nf-call-iptables"),
        );
        assert!(errors[0].to_string().contains("modprobe br_netfilter"));
        assert!(
            ensure(
                root.path(),
                &BTreeSet::new(),
                &BTreeSet::new(),
                &wanted("ipv6/conf/x/accept_ra")
            )
            .is_empty()
        );
        std::fs::create_dir(root.path().join("ipv6")).unwrap();
        assert_eq!(
            ensure(
                root.path(),
                &BTreeSet::new(),
                &BTreeSet::new(),
                &wanted("ipv6/conf/x/accept_ra")
            )
            .len(),
            1
        );
    }
}
