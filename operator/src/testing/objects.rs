//! Objects for tests.

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use netweft_crds::{IPPool, NetworkMode};
use serde::de::DeserializeOwned;

/// Parses an object from YAML.
pub fn yaml<K: DeserializeOwned>(text: &str) -> K {
    serde_saphyr::from_str(text).unwrap()
}

/// An IPPool with this CIDR and these other fields of the spec.
pub fn pool(name: &str, cidr: &str, more: &str) -> IPPool {
    yaml(&format!(
        "{{apiVersion: netweft.io/v1alpha1, kind: IPPool, metadata: {{name: {name}, generation: 1}}, spec: {{cidr: '{cidr}', {more}}}}}"
    ))
}

/// A NetworkMode with this spec.
pub fn mode(name: &str, spec: &str) -> NetworkMode {
    yaml(&format!(
        "{{apiVersion: netweft.io/v1alpha1, kind: NetworkMode, metadata: {{name: {name}, generation: 1}}, spec: {spec}}}"
    ))
}

/// A NetworkMode with VXLAN and this VNI.
pub fn vxlan(name: &str, vni: u32) -> NetworkMode {
    mode(
        name,
        &format!("{{mode: overlay, overlay: {{encapsulation: vxlan, vxlan: {{vni: {vni}}}}}}}"),
    )
}

/// A Node with these addresses of type InternalIP.
pub fn node(name: &str, addresses: &[&str]) -> Node {
    let addresses: Vec<_> = addresses
        .iter()
        .map(|a| format!("{{type: InternalIP, address: '{a}'}}"))
        .collect();
    yaml(&format!(
        "{{metadata: {{name: {name}, uid: uid-{name}, labels: {{kubernetes.io/hostname: {name}}}}}, status: {{addresses: [{}]}}}}",
        addresses.join(", ")
    ))
}

/// A ServiceCIDR.
pub fn services(name: &str, cidr: &str) -> ServiceCIDR {
    yaml(&format!(
        "{{metadata: {{name: {name}}}, spec: {{cidrs: ['{cidr}']}}}}"
    ))
}

/// The ConfigMap of kube-proxy with this configuration.
pub fn kube_proxy(configuration: &str) -> ConfigMap {
    yaml(&format!(
        "{{metadata: {{name: kube-proxy}}, data: {{config.conf: \"{configuration}\"}}}}"
    ))
}

/// Sets the creation time of an object.
pub fn at<K: Resource>(second: i64, mut object: K) -> K {
    object.meta_mut().creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
    object
}

/// A condition with transition time 0.
pub fn condition(type_: &str, status: &str, reason: &str) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}
