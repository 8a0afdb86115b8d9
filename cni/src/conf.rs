//! The network configuration: the node agent installs it for the container runtime, which passes it to the plugin.
//!
//! The configuration is static: names and paths only. Everything that changes is in [`crate::node::NodeConfig`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Name of the network in the configuration.
pub const NETWORK: &str = "netweft";
/// Name of the plugin's file in the runtime's binary directory.
pub const PLUGIN: &str = "netweft";
/// Name of the chained plugin for host ports. With a name of its own, it never replaces the host's plugin.
pub const PORTMAP_PLUGIN: &str = "netweft-portmap";
/// Name of the chained plugin that limits the rates of pods with bandwidth annotations.
pub const BANDWIDTH_PLUGIN: &str = "netweft-bandwidth";
/// Name of the copy of the plugin `loopback` that comes with netweft.
pub const LOOPBACK_PLUGIN: &str = "netweft-loopback";
/// Name by which containerd and CRI-O call the plugin that sets up `lo` of a pod.
pub const RUNTIME_LOOPBACK: &str = "loopback";
/// Name of the configuration file in the runtime's configuration directory.
pub const CONFLIST_FILE: &str = "10-netweft.conflist";
/// Default of the directory that agent and plugin share.
pub const DEFAULT_RUN_DIR: &str = "/run/netweft";
/// The newest supported version of the specification.
pub const CNI_VERSION: &str = "1.1.0";
/// The supported versions of the specification, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", CNI_VERSION];

/// Whether a runtime reads a file of this name in its configuration directory (`libcni.ConfFiles`).
#[must_use]
pub fn is_read_by_runtimes(name: &str) -> bool {
    let mut endings = [".conf", ".conflist", ".json"].iter();
    endings.any(|ending| name.ends_with(ending))
}

/// The network configuration on standard input. Other fields are ignored.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetConf {
    /// Version of the specification that the result must follow.
    #[serde(default)]
    pub cni_version: String,
    /// Name of the network.
    #[serde(default)]
    pub name: String,
    /// Directory shared with the agent.
    #[serde(default = "default_run_dir")]
    pub run_dir: String,
    /// The result of an earlier plugin, or of ADD.
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// The fields that the runtime adds for the capabilities of the configuration.
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    /// GC: the attachments that the runtime still has.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

/// The fields of `runtimeConfig` that this plugin uses.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RuntimeConfig {
    /// The pod's annotations, from runtimes that have this capability (containerd).
    #[serde(default, rename = "io.kubernetes.cri.pod-annotations")]
    pub annotations: BTreeMap<String, String>,
    /// The pod's host ports; `null` from containerd if it has none.
    #[serde(default, rename = "portMappings")]
    pub port_mappings: Option<Vec<PortMapping>>,
}

/// A port of the pod, as the capability `portMappings` describes it (CNI conventions, "Dynamic Plugin specific Fields").
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The port on the node; 0 if the container port has no host port.
    #[serde(default)]
    pub host_port: i64,
}

/// An attachment in the list of GC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct ValidAttachment {
    /// The sandbox.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The link's name inside the sandbox.
    #[serde(rename = "ifname")]
    pub if_name: String,
}

fn default_run_dir() -> String {
    DEFAULT_RUN_DIR.to_owned()
}

/// Renders the configuration file. The same input gives the same bytes.
#[must_use]
pub fn conflist(run_dir: &str) -> String {
    let list = Conflist {
        cni_version: CNI_VERSION,
        name: NETWORK,
        plugins: [
            Plugin {
                kind: PLUGIN,
                run_dir: Some(run_dir),
                capabilities: Capabilities {
                    annotations: true,
                    // The plugin checks host ports before it allocates an address; the chained portmap forwards them.
                    port_mappings: true,
                    ..Capabilities::default()
                },
                snat: None,
            },
            Plugin {
                kind: PORTMAP_PLUGIN,
                run_dir: None,
                capabilities: Capabilities {
                    port_mappings: true,
                    ..Capabilities::default()
                },
                snat: Some(true),
            },
            Plugin {
                kind: BANDWIDTH_PLUGIN,
                run_dir: None,
                capabilities: Capabilities {
                    bandwidth: true,
                    ..Capabilities::default()
                },
                snat: None,
            },
        ],
    };
    // Serialization cannot fail: the maps have string keys, and there are no floats.
    serde_json::to_string_pretty(&list)
        .map(|text| text + "\n")
        .unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Conflist<'a> {
    cni_version: &'a str,
    name: &'a str,
    plugins: [Plugin<'a>; 3],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Plugin<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_dir: Option<&'a str>,
    capabilities: Capabilities,
    #[serde(skip_serializing_if = "Option::is_none")]
    snat: Option<bool>,
}

/// The fields that the runtime must add to the configuration.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Capabilities {
    #[serde(
        skip_serializing_if = "std::ops::Not::not",
        rename = "io.kubernetes.cri.pod-annotations"
    )]
    annotations: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    port_mappings: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    bandwidth: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflist_has_form_expected_by_runtime() {
        let expected = r#"{
  "cniVersion": "1.1.0",
  "name": "netweft",
  "plugins": [
    {
      "type": "netweft",
      "runDir": "/run/netweft",
      "capabilities": {
        "io.kubernetes.cri.pod-annotations": true,
        "portMappings": true
      }
    },
    {
      "type": "netweft-portmap",
      "capabilities": {
        "portMappings": true
      },
      "snat": true
    },
    {
      "type": "netweft-bandwidth",
      "capabilities": {
        "bandwidth": true
      }
    }
  ]
}
"#;
        assert_eq!(conflist("/run/netweft"), expected);
    }

    #[test]
    fn unknown_conf_fields_are_ignored_and_run_dir_defaults() {
        let text = r#"{"cniVersion":"1.0.0","name":"n","type":"netweft","runtimeConfig":{"portMappings":[]},"x":1}"#;
        let conf: NetConf = serde_json::from_str(text).unwrap();
        assert_eq!(
            (conf.run_dir.as_str(), conf.cni_version.as_str()),
            (DEFAULT_RUN_DIR, "1.0.0")
        );
        assert!(conf.prev_result.is_none() && conf.valid_attachments.is_none());
    }
}
