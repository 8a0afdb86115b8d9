//! Keeping kernel parameters as they should be.

mod saved;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use netweft_common::link_names;
use netweft_crds::IpFamily;
use netweft_netstate::model::LinkName;
use tracing::info;

pub use crate::apply::sysctl::saved::{Original, Originals};
use crate::commands::args::Paths;

/// Name of a link's parameter that turns IPv6 off.
pub const DISABLE_IPV6: &str = "disable_ipv6";
/// Whether IPv6 is forwarded on all links.
pub const FORWARDING_V6: &str = "ipv6/conf/all/forwarding";

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
    /// The original value cannot be saved, so nothing was set.
    #[error("save the original value {was} of {path}")]
    SaveFailed {
        /// The parameter.
        path: PathBuf,
        /// The present value.
        was: String,
        /// The cause.
        source: io::Error,
    },
    /// Pods on a bridge need a part of the kernel that is not there.
    #[error(
        "{0} does not exist, so Services fail between pods on the bridge of this node: load the kernel module br_netfilter (modprobe br_netfilter, and for the next boot a line in /etc/modules-load.d)"
    )]
    NoBridgeNetfilter(PathBuf),
}

impl SysctlError {
    /// What could not be set, in words.
    #[must_use]
    pub fn parameter(&self) -> String {
        let (Self::Set { path, .. }
        | Self::SaveFailed { path, .. }
        | Self::NoBridgeNetfilter(path)) = self;
        format!("parameter {}", path.display())
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Ensured {
    /// What could not be set.
    pub errors: Vec<SysctlError>,
    /// What was set: path below the root, value before, value now.
    pub set: Vec<(String, String, String)>,
}

/// The parameters of a node.
#[derive(Debug)]
pub struct Parameters {
    root: PathBuf,
    originals: Originals,
}

impl Parameters {
    /// Those of the node with these places.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self {
            root: paths.sysctl_dir.clone(),
            originals: Originals::new(&paths.run_dir),
        }
    }

    /// Whether this kernel has IPv6: none with the boot parameter `ipv6.disable=1` (`inet6_init`).
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.root.join("ipv6").exists()
    }

    /// Set those of `wanted` (values by path below the root) that differ. One failure does not stop the others.
    ///
    /// Links of `accept_ra_links` come first, and those that listen unless they forward (1) listen in any case (2): when
    /// forwarding is switched on the kernel drops the default routes that it has learned from router advertisements, unless the
    /// link's `accept_ra` is 2 (`addrconf_fixup_forwarding`). The value applies to later links too. But where the node forwarded
    /// before, such links do not listen, and do not begin to.
    pub fn ensure(
        &self,
        accept_ra_links: &BTreeSet<LinkName>,
        loose_rp_filter: &BTreeSet<LinkName>,
        wanted: &BTreeMap<String, String>,
    ) -> Ensured {
        let mut ensured = Ensured::default();
        // A link that does not listen (0) goes on so, and one without IPv6 has learned nothing.
        let listen = |name: &String| value(&self.root, name) == "1";
        let listen: Vec<String> = accept_ra_links
            .iter()
            .map(accept_ra)
            .filter(listen)
            .collect();
        if !listen.is_empty() && !self.forwarded_before() {
            for name in listen {
                self.one(&name, "2", &mut ensured);
            }
        }
        for link in loose_rp_filter
            .iter()
            .filter(|link| is_strict(&self.root, link))
        {
            self.one(&rp_filter(link.as_str()), "2", &mut ensured);
        }
        // A kernel without IPv6 has none of its parameters and needs none.
        let needed = |name: &str| !name.starts_with("ipv6/") || self.has_ipv6();
        for (name, value) in wanted.iter().filter(|(name, _)| needed(name)) {
            self.one(name, value, &mut ensured);
        }
        ensured
    }

    /// Whether the node forwards IPv6 without netweft's doing.
    fn forwarded_before(&self) -> bool {
        let switched_on = || {
            let originals = self.originals.list();
            originals.is_ok_and(|originals| originals.contains_key(FORWARDING_V6))
        };
        value(&self.root, FORWARDING_V6) == "1" && !switched_on()
    }

    fn one(&self, name: &str, value: &str, ensured: &mut Ensured) {
        match self.set(name, value) {
            Ok(None) => {}
            Ok(Some(found)) => ensured.set.push((name.to_owned(), found, value.to_owned())),
            Err(error) => ensured.errors.push(error),
        }
    }

    /// Allows the group of this process to send ICMP echo requests without a capability. Most distributions allow all groups.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn allow_ping_sockets(&self) -> Result<(), SysctlError> {
        const NAME: &str = "ipv4/ping_group_range";
        let group = nix::unistd::getegid().as_raw();
        let range = value(&self.root, NAME);
        let mut ends = range.split_whitespace().map(str::parse::<u32>);
        let (first, last) = match (ends.next(), ends.next()) {
            (Some(Ok(first)), Some(Ok(last))) if (first..=last).contains(&group) => return Ok(()),
            // Groups that may send now keep the permission.
            (Some(Ok(first)), Some(Ok(last))) if first <= last => {
                (first.min(group), last.max(group))
            }
            // No group may send (`1 0`).
            _ => (group, group),
        };
        self.set(NAME, &format!("{first}\t{last}")).map(drop)
    }

    /// Returns what stood there if it was something else.
    fn set(&self, name: &str, value: &str) -> Result<Option<String>, SysctlError> {
        let path = self.root.join(name);
        let not_set = |source: io::Error| {
            let absent = source.kind() == io::ErrorKind::NotFound;
            if absent && name.starts_with("bridge/") {
                return SysctlError::NoBridgeNetfilter(path.clone());
            }
            SysctlError::Set {
                path: path.clone(),
                value: value.to_owned(),
                source,
            }
        };
        let was = match std::fs::read_to_string(&path) {
            // The pod has been deleted since its record was read. Or the MTU of the link is too small for IPv6 (`addrconf_notify`).
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && (is_of_pod(name) || name.ends_with("/accept_ra")) =>
            {
                return Ok(None);
            }
            was => was.map_err(not_set)?.trim().to_owned(),
        };
        if was == value {
            return Ok(None);
        }
        if let Err(source) = self.originals.note(name, &was, value) {
            return Err(SysctlError::SaveFailed { path, was, source });
        }
        std::fs::write(&path, value).map_err(not_set)?;
        info!(parameter = %path.display(), from = was, to = value, "set kernel parameter");
        Ok(Some(was))
    }
}

/// The path of a link's `accept_ra`.
#[must_use]
pub fn accept_ra(link: &LinkName) -> String {
    format!("ipv6/conf/{link}/accept_ra")
}

/// The path of a link's switch that turns IPv6 off.
#[must_use]
pub fn disable_ipv6(link: &LinkName) -> String {
    format!("ipv6/conf/{link}/{DISABLE_IPV6}")
}

/// The path of what lets packets that come in by a link be forwarded.
#[must_use]
pub fn forwarding(link: &LinkName, family: IpFamily) -> String {
    let family = match family {
        IpFamily::Ipv4 => "ipv4",
        IpFamily::Ipv6 => "ipv6",
    };
    format!("{family}/conf/{link}/forwarding")
}

/// Whether it is a parameter of a pod's link.
fn is_of_pod(name: &str) -> bool {
    name.split('/').any(link_names::is_of_pod)
}

/// The path of a link's reverse path filter.
#[must_use]
pub fn rp_filter(link: &str) -> String {
    format!("ipv4/conf/{link}/rp_filter")
}

/// The present value; empty if the file cannot be read.
fn value(root: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(root.join(name)).unwrap_or_default();
    text.trim().to_owned()
}

/// A reverse path filter that is strict (1) becomes loose (2, RFC 3704); one that is off stays so. The kernel takes the larger
/// of the link's value and that of `all` (`IN_DEV_RPFILTER`), so the link's own is enough.
fn is_strict(root: &Path, link: &LinkName) -> bool {
    let values = ["all", link.as_str()].map(|name| value(root, &rp_filter(name)));
    let has = |wanted: &str| values.iter().any(|value| value == wanted);
    has("1") && !has("2")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the parameters' root for the run directory too.
    fn parameters(root: &tempfile::TempDir) -> Parameters {
        Parameters {
            root: root.path().to_owned(),
            originals: Originals::new(root.path()),
        }
    }

    #[test]
    fn sysctl_failure_does_not_stop_other_writes() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("b"), "0\n").unwrap();
        let wanted = BTreeMap::from([("a/missing".into(), "1".into()), ("b".into(), "1".into())]);
        let parameters = parameters(&root);
        let Ensured { errors, set } =
            parameters.ensure(&BTreeSet::new(), &BTreeSet::new(), &wanted);
        assert_eq!(errors.len(), 1);
        assert_eq!(set, [("b".into(), "0".into(), "1".into())]);
        assert!(errors[0].to_string().contains("a/missing to 1"));
        assert_eq!(std::fs::read_to_string(root.path().join("b")).unwrap(), "1");
    }

    #[test]
    fn ping_group_range_is_only_widened() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("ipv4/ping_group_range");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let group = nix::unistd::getegid().as_raw();
        let own = format!("{group}\t{group}");
        let (above, wider) = (
            format!("{}\t{}", group + 1000, group + 2000),
            format!("{group}\t{}", group + 2000),
        );
        for (before, after) in [
            ("1\t0", own.as_str()),
            (above.as_str(), wider.as_str()),
            ("0\t2147483647", "0\t2147483647"),
            ("", own.as_str()),
        ] {
            std::fs::write(&file, before).unwrap();
            parameters(&root).allow_ping_sockets().unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), after);
        }
    }

    #[test]
    fn accept_ra_of_uplink_is_kept_and_never_enabled() {
        let root = tempfile::tempdir().unwrap();
        let file = |link: &str| root.path().join("ipv6/conf").join(link).join("accept_ra");
        for (link, value) in [("eth0", "1\n"), ("eth1", "0\n")] {
            std::fs::create_dir_all(file(link).parent().unwrap()).unwrap();
            std::fs::write(file(link), value).unwrap();
        }
        let links = ["eth0", "eth1", "no-ipv6"].map(|link| link.parse().unwrap());
        let ensured = parameters(&root).ensure(&links.into(), &BTreeSet::new(), &BTreeMap::new());
        let errors = ensured.errors;
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(std::fs::read_to_string(file("eth0")).unwrap(), "2");
        assert_eq!(std::fs::read_to_string(file("eth1")).unwrap(), "0\n");
    }

    /// The first link is there when forwarding is switched on, the second comes later.
    #[test]
    fn accept_ra_is_raised_only_if_agent_enabled_forwarding() {
        for (before, after) in [("0", "2"), ("1", "1")] {
            let root = tempfile::tempdir().unwrap();
            let path = |name: &str| root.path().join(name);
            let write = |name: &str, value: &str| {
                std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
                std::fs::write(path(name), value).unwrap();
            };
            write(FORWARDING_V6, before);
            let wanted = BTreeMap::from([(FORWARDING_V6.to_owned(), "1".to_owned())]);
            for link in ["eth0", "eth1"] {
                let name = format!("ipv6/conf/{link}/accept_ra");
                write(&name, "1");
                let links = [link.parse().unwrap()].into();
                let ensured = parameters(&root).ensure(&links, &BTreeSet::new(), &wanted);
                let set: Vec<_> = ensured.set.into_iter().map(|(name, ..)| name).collect();
                assert_eq!(set.first() == Some(&name), before == "0", "{set:?}");
                assert_eq!(std::fs::read_to_string(path(&name)).unwrap(), after);
                assert_eq!(std::fs::read_to_string(path(FORWARDING_V6)).unwrap(), "1");
            }
        }
    }

    #[test]
    fn strict_rp_filter_becomes_loose_others_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let file = |link: &str| root.path().join("ipv4/conf").join(link).join("rp_filter");
        let run = |all: &str, own: &str| {
            for (link, value) in [("all", all), ("eth0", own)] {
                std::fs::create_dir_all(file(link).parent().unwrap()).unwrap();
                std::fs::write(file(link), value).unwrap();
            }
            let links = ["eth0".parse().unwrap()].into();
            let ensured = parameters(&root).ensure(&BTreeSet::new(), &links, &BTreeMap::new());
            let errors = ensured.errors;
            assert!(errors.is_empty(), "{errors:?}");
            std::fs::read_to_string(file("eth0")).unwrap()
        };
        assert_eq!(run("0", "1"), "2");
        assert_eq!(run("1", "0"), "2");
        assert_eq!(run("0", "0"), "0", "off stays off");
        assert_eq!(run("2", "1"), "1", "it is loose already");
    }

    #[test]
    fn sysctl_with_unsaved_original_is_not_set() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a"), "0\n").unwrap();
        let parameters = Parameters {
            root: root.path().to_owned(),
            originals: Originals::new(Path::new("/nonexistent")),
        };
        let wanted = BTreeMap::from([("a".into(), "1".into())]);
        let ensured = parameters.ensure(&BTreeSet::new(), &BTreeSet::new(), &wanted);
        assert!(
            ensured.errors[0]
                .to_string()
                .contains("original value 0 of")
        );
        assert_eq!(
            std::fs::read_to_string(root.path().join("a")).unwrap(),
            "0\n"
        );
    }

    #[test]
    fn missing_sysctl_names_module_and_absent_ipv6_is_ignored() {
        let root = tempfile::tempdir().unwrap();
        let errors = |name: &str| {
            let wanted = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            let (none, parameters) = (BTreeSet::new(), parameters(&root));
            parameters.ensure(&none, &none, &wanted).errors
        };
        let missing = errors("bridge/bridge-nf-call-iptables");
        assert!(missing[0].to_string().contains("modprobe br_netfilter"));
        assert!(errors("ipv6/conf/x/accept_ra").is_empty());
        std::fs::create_dir(root.path().join("ipv6")).unwrap();
        assert_eq!(errors("ipv6/conf/x/disable_ipv6").len(), 1);
        // A link without IPv6, and the link of a pod that is gone.
        for name in ["ipv6/conf/x/accept_ra", "ipv4/conf/nw0123456789a/rp_filter"] {
            assert!(errors(name).is_empty(), "{name}");
        }
    }
}
