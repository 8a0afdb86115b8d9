//! [`KubeProxy`]: how kube-proxy tells packets of pods from those of others, read from its ConfigMap.
//!
//! On the way to a Service, kube-proxy masquerades what it does not take for a pod's packet; the pods behind the Service
//! then see a node where they should see a pod. What it takes for a pod's is said by `detectLocalMode`
//! (`getLocalDetectors` in kube-proxy):
//!
//! | mode | a pod's packet |
//! |---|---|
//! | `ClusterCIDR`, the default | comes from `clusterCIDR`, the first of each family; none: not known |
//! | `NodeCIDR` | comes from `Node.spec.podCIDR`, which is not ours |
//! | `BridgeInterface` | comes in by that link |
//! | `InterfaceNamePrefix` | comes in by a link whose name begins so |
//!
//! A kube-proxy that knows no pods' packets masquerades nobody's on the way to a ClusterIP. Pods and nodes reach Services all the
//! same (the agent gives what a node sends into a tunnel the tunnel's address), and hosts outside the cluster do not.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use netweft_common::link_names::{BRIDGE, PREFIX};
use netweft_crds::{IPPoolSpec, IpFamily, PodInterface};
use serde::Deserialize;

/// Namespace of the ConfigMap, as kubeadm writes it.
pub const NAMESPACE: &str = "kube-system";
/// Its name.
pub const NAME: &str = "kube-proxy";
/// The key of the configuration in it.
const KEY: &str = "config.conf";

/// How kube-proxy tells packets of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KubeProxy {
    /// There is no ConfigMap: on k3s, RKE2, Talos and managed clusters, and where something else serves Services.
    #[default]
    Absent,
    /// The ConfigMap does not say.
    Unknown,
    /// By source.
    ClusterCidr(Vec<IpNet>),
    /// By source, in the Node's `podCIDR`.
    NodeCidr,
    /// By this link.
    Bridge(String),
    /// By the beginning of the link's name.
    NamePrefix(String),
}

/// The part of `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1) that is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    #[serde(default)]
    detect_local_mode: Option<String>,
    #[serde(default, rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    #[serde(default)]
    detect_local: Option<DetectLocal>,
}

/// Parameters of two modes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DetectLocal {
    #[serde(default)]
    bridge_interface: Option<String>,
    #[serde(default)]
    interface_name_prefix: Option<String>,
}

impl KubeProxy {
    /// What the ConfigMap says. One that cannot be read says nothing: kube-proxy does not start from it either.
    #[must_use]
    pub fn of(config: &ConfigMap) -> Self {
        let text = config.data.as_ref().and_then(|data| data.get(KEY));
        let text = text.filter(|text| !text.trim().is_empty());
        let read: Option<Configuration> = text.and_then(|text| serde_saphyr::from_str(text).ok());
        let Some(Configuration {
            detect_local_mode,
            cluster_cidr,
            detect_local,
        }) = read
        else {
            return Self::Unknown;
        };
        let local = detect_local.unwrap_or_default();
        match detect_local_mode.unwrap_or_default().as_str() {
            "" | "ClusterCIDR" => {
                let cidrs = cluster_cidr.unwrap_or_default();
                let cidrs = cidrs.split(',').filter_map(|cidr| cidr.trim().parse().ok());
                Self::ClusterCidr(cidrs.collect())
            }
            "NodeCIDR" => Self::NodeCidr,
            "BridgeInterface" => Self::Bridge(local.bridge_interface.unwrap_or_default()),
            "InterfaceNamePrefix" => {
                Self::NamePrefix(local.interface_name_prefix.unwrap_or_default())
            }
            _ => Self::Unknown,
        }
    }

    /// What is wrong, and what to do, if packets of this pool's pods are not taken for pods'.
    #[must_use]
    pub fn mismatch(&self, pool: &IPPoolSpec) -> Option<String> {
        let link = match pool.pod_interface {
            PodInterface::Routed => PREFIX,
            PodInterface::Bridge => BRIDGE,
        };
        let by = match self {
            Self::Absent | Self::Unknown => return None,
            Self::ClusterCidr(cidrs) => {
                let mut ranges = cidrs.iter();
                let range = ranges.find(|cidr| cidr.addr().is_ipv4() == pool.cidr.addr().is_ipv4());
                match range {
                    None => return None,
                    Some(range) if range.contains(&pool.cidr) => return None,
                    Some(range) => format!("clusterCIDR {range}"),
                }
            }
            Self::NodeCidr => "the Nodes' podCIDR (detectLocalMode NodeCIDR)".to_owned(),
            Self::Bridge(name) if pool.pod_interface == PodInterface::Bridge && name == BRIDGE => {
                return None;
            }
            Self::Bridge(name) => format!("bridgeInterface {name}"),
            Self::NamePrefix(prefix) if link.starts_with(prefix.as_str()) => return None,
            Self::NamePrefix(prefix) => format!("interfaceNamePrefix {prefix}"),
        };
        Some(format!(
            "kube-proxy detects pods by {by} and masquerades traffic of pods in {} to Services; {}",
            pool.cidr,
            remedy()
        ))
    }

    /// What keeps no pod from a Service and should be known: what could not be checked, or that no pods are known.
    #[must_use]
    pub fn remark(&self, pool: &IPPoolSpec) -> Option<String> {
        let ipv4 = pool.cidr.addr().is_ipv4();
        if let Self::ClusterCidr(ranges) = self
            && !ranges.iter().any(|range| range.addr().is_ipv4() == ipv4)
        {
            return Some(knows_no_pods(pool));
        }
        (*self == Self::Absent).then(|| {
            format!(
                "whether kube-proxy detects pods of this pool is unknown, because ConfigMap {NAMESPACE}/{NAME} does not exist: if kube-proxy runs, \
                 its clusterCIDR must contain {}, or its detectLocalMode must be InterfaceNamePrefix with {PREFIX}",
                pool.cidr
            )
        })
    }
}

fn knows_no_pods(pool: &IPPoolSpec) -> String {
    let family = IpFamily::of(pool.cidr.addr());
    format!(
        "kube-proxy has no {family} clusterCIDR to detect pods of {}, so it does not masquerade traffic of hosts outside the cluster to \
         ClusterIPs; {}",
        pool.cidr,
        remedy()
    )
}

fn remedy() -> String {
    format!(
        "set detectLocalMode: InterfaceNamePrefix and detectLocal: {{interfaceNamePrefix: {PREFIX}}} in {KEY} of ConfigMap \
         {NAMESPACE}/{NAME}, and restart kube-proxy"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pool;

    fn says(configuration: &str, pool: &IPPoolSpec) -> Option<String> {
        proxy(configuration).mismatch(pool)
    }

    fn proxy(configuration: &str) -> KubeProxy {
        let data = [(KEY.to_owned(), configuration.to_owned())].into();
        let config = ConfigMap {
            data: Some(data),
            ..ConfigMap::default()
        };
        KubeProxy::of(&config)
    }

    fn routed() -> IPPoolSpec {
        pool("p", "10.244.0.0/16", "").spec
    }

    fn bridged() -> IPPoolSpec {
        pool("p", "10.244.0.0/16", "podInterface: bridge").spec
    }

    #[test]
    fn pool_inside_cluster_cidr_of_its_family_matches() {
        for known in [
            "{clusterCIDR: 10.244.0.0/16}",
            "{detectLocalMode: ClusterCIDR, clusterCIDR: 'fd00::/48,10.0.0.0/8'}",
        ] {
            assert_eq!(says(known, &routed()), None, "{known}");
        }
        for foreign in [
            "{clusterCIDR: 10.244.0.0/17}",
            "{detectLocalMode: '', clusterCIDR: '10.0.0.0/16,fd00::/48'}",
        ] {
            assert!(says(foreign, &routed()).is_some(), "{foreign}");
        }
    }

    #[test]
    fn kube_proxy_without_cluster_cidr_of_family_knows_no_pods() {
        for nothing in [
            "{clusterCIDR: ''}",
            "{mode: iptables}",
            "{detectLocalMode: '', clusterCIDR: ''}",
            "{detectLocalMode: ClusterCIDR, clusterCIDR: null}",
            "{clusterCIDR: 'fd00::/48'}",
        ] {
            assert_eq!(says(nothing, &routed()), None, "{nothing}");
            let said = proxy(nothing).remark(&routed()).unwrap_or_default();
            let begins = "kube-proxy has no IPv4 clusterCIDR to detect pods of 10.244.0.0/16";
            assert!(said.starts_with(begins), "{nothing}: {said}");
        }
    }

    #[test]
    fn only_absent_kube_proxy_config_map_is_remarked() {
        let said = KubeProxy::Absent.remark(&routed()).unwrap();
        assert!(
            said.contains("ConfigMap kube-system/kube-proxy does not exist"),
            "{said}"
        );
        assert_eq!(KubeProxy::Absent.mismatch(&routed()), None);
        assert_eq!(KubeProxy::Unknown.remark(&routed()), None);
        assert_eq!(KubeProxy::NodeCidr.remark(&routed()), None);
    }

    #[test]
    fn kube_proxy_mismatch_message_names_required_config() {
        assert_eq!(
            says("{clusterCIDR: 10.0.0.0/16}", &routed()).unwrap(),
            "kube-proxy detects pods by clusterCIDR 10.0.0.0/16 and masquerades traffic of pods in 10.244.0.0/16 to Services; set detectLocalMode: InterfaceNamePrefix and detectLocal: {interfaceNamePrefix: nw} in config.conf of ConfigMap kube-system/kube-proxy, and restart kube-proxy"
        );
    }

    #[test]
    fn kube_proxy_interface_prefix_matches_pod_links() {
        let prefix = |prefix: &str| {
            format!(
                "{{detectLocalMode: InterfaceNamePrefix, detectLocal: {{interfaceNamePrefix: '{prefix}'}}}}"
            )
        };
        for (prefix, of_routed, of_bridged) in [
            (prefix("nw"), true, true),
            (prefix("n"), true, true),
            (prefix("nw-br"), false, true),
            (prefix("cali"), false, false),
            (
                "{detectLocalMode: BridgeInterface, detectLocal: {bridgeInterface: nw-br0}}"
                    .to_owned(),
                false,
                true,
            ),
            (
                "{detectLocalMode: BridgeInterface, detectLocal: {bridgeInterface: cni0}}"
                    .to_owned(),
                false,
                false,
            ),
            ("{detectLocalMode: NodeCIDR}".to_owned(), false, false),
        ] {
            assert_eq!(says(&prefix, &routed()).is_none(), of_routed, "{prefix}");
            assert_eq!(says(&prefix, &bridged()).is_none(), of_bridged, "{prefix}");
        }
    }

    #[test]
    fn unreadable_kube_proxy_config_gives_no_mismatch() {
        for config in [
            "",
            "[]",
            "{detectLocalMode: Nonsense}",
            "{clusterCIDR: [1]}",
        ] {
            assert_eq!(says(config, &routed()), None, "{config}");
        }
        assert_eq!(KubeProxy::of(&ConfigMap::default()), KubeProxy::Unknown);
    }
}
