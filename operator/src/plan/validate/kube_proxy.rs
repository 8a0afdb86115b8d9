//! [`KubeProxy`]: how kube-proxy detects packets of pods, according to its ConfigMap.
//!
//! kube-proxy masquerades packets to a Service that it does not detect as packets of pods. The pods behind the Service
//! then see the address of a node instead of the pod's. `detectLocalMode` selects the detection (`getLocalDetectors` in
//! kube-proxy):
//!
//! | mode | a pod's packet |
//! |---|---|
//! | `ClusterCIDR` (default) | The source is in `clusterCIDR`, the first one of each family. Empty: no detection. |
//! | `NodeCIDR` | The source is in `Node.spec.podCIDR`, which netweft does not use. |
//! | `BridgeInterface` | The packet arrives by this link. |
//! | `InterfaceNamePrefix` | The packet arrives by a link whose name has this prefix. |
//!
//! Without detection kube-proxy masquerades no packet to a ClusterIP. Pods and nodes still reach Services, because
//! packets from a node into a tunnel have the tunnel's address. Hosts outside the cluster do not.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use netweft_common::link_names::{BRIDGE, PREFIX};
use netweft_crds::{IPPoolSpec, IpFamily, PodInterface};
use serde::Deserialize;

/// Namespace of kube-proxy's ConfigMap, as created by kubeadm.
pub const NAMESPACE: &str = "kube-system";
/// Name of kube-proxy's ConfigMap.
pub const NAME: &str = "kube-proxy";
/// Key of the configuration in the ConfigMap.
const KEY: &str = "config.conf";

/// How kube-proxy detects packets of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KubeProxy {
    /// No ConfigMap: k3s, RKE2, Talos, managed clusters, and clusters without kube-proxy.
    #[default]
    Absent,
    /// The ConfigMap has no known detection mode.
    Unknown,
    /// By source address.
    ClusterCidr(Vec<IpNet>),
    /// By source address in the Node's `podCIDR`.
    NodeCidr,
    /// By the link with this name.
    Bridge(String),
    /// By links whose names have this prefix.
    NamePrefix(String),
}

/// The fields in use of `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1).
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

/// Parameters of the modes BridgeInterface and InterfaceNamePrefix.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DetectLocal {
    #[serde(default)]
    bridge_interface: Option<String>,
    #[serde(default)]
    interface_name_prefix: Option<String>,
}

impl KubeProxy {
    /// Parses the ConfigMap. kube-proxy does not start with an invalid one either.
    #[must_use]
    pub fn of(config: &ConfigMap) -> Self {
        let text = config.data.as_ref().and_then(|data| data.get(KEY));
        let text = text.filter(|text| !text.trim().is_empty());
        let parsed: Option<Configuration> = text.and_then(|text| serde_saphyr::from_str(text).ok());
        let Some(Configuration {
            detect_local_mode,
            cluster_cidr,
            detect_local,
        }) = parsed
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

    /// Why kube-proxy does not detect packets of this pool's pods, with a remedy.
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

    /// A remark about a configuration that disconnects no pod: the detection is unknown, or there is none.
    #[must_use]
    pub fn remark(&self, pool: &IPPoolSpec) -> Option<String> {
        let ipv4 = pool.cidr.addr().is_ipv4();
        if let Self::ClusterCidr(ranges) = self
            && !ranges.iter().any(|range| range.addr().is_ipv4() == ipv4)
        {
            return Some(no_detection_message(pool));
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

fn no_detection_message(pool: &IPPoolSpec) -> String {
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

    fn mismatch(configuration: &str, pool: &IPPoolSpec) -> Option<String> {
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
        for range in [
            "{clusterCIDR: 10.244.0.0/16}",
            "{detectLocalMode: ClusterCIDR, clusterCIDR: 'fd00::/48,10.0.0.0/8'}",
        ] {
            assert_eq!(mismatch(range, &routed()), None, "{range}");
        }
        for other in [
            "{clusterCIDR: 10.244.0.0/17}",
            "{detectLocalMode: '', clusterCIDR: '10.0.0.0/16,fd00::/48'}",
        ] {
            assert!(mismatch(other, &routed()).is_some(), "{other}");
        }
    }

    #[test]
    fn kube_proxy_without_cluster_cidr_of_family_detects_no_pods() {
        for config in [
            "{clusterCIDR: ''}",
            "{mode: iptables}",
            "{detectLocalMode: '', clusterCIDR: ''}",
            "{detectLocalMode: ClusterCIDR, clusterCIDR: null}",
            "{clusterCIDR: 'fd00::/48'}",
        ] {
            assert_eq!(mismatch(config, &routed()), None, "{config}");
            let message = proxy(config).remark(&routed()).unwrap_or_default();
            let expected = "kube-proxy has no IPv4 clusterCIDR to detect pods of 10.244.0.0/16";
            assert!(message.starts_with(expected), "{config}: {message}");
        }
    }

    #[test]
    fn only_absent_kube_proxy_config_map_is_remarked() {
        let message = KubeProxy::Absent.remark(&routed()).unwrap();
        assert!(
            message.contains("ConfigMap kube-system/kube-proxy does not exist"),
            "{message}"
        );
        assert_eq!(KubeProxy::Absent.mismatch(&routed()), None);
        assert_eq!(KubeProxy::Unknown.remark(&routed()), None);
        assert_eq!(KubeProxy::NodeCidr.remark(&routed()), None);
    }

    #[test]
    fn kube_proxy_mismatch_message_names_required_config() {
        assert_eq!(
            mismatch("{clusterCIDR: 10.0.0.0/16}", &routed()).unwrap(),
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
            assert_eq!(
                mismatch(&prefix, &routed()).is_none(),
                of_routed,
                "{prefix}"
            );
            assert_eq!(
                mismatch(&prefix, &bridged()).is_none(),
                of_bridged,
                "{prefix}"
            );
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
            assert_eq!(mismatch(config, &routed()), None, "{config}");
        }
        assert_eq!(KubeProxy::of(&ConfigMap::default()), KubeProxy::Unknown);
    }
}
