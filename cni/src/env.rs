//! The request of the container runtime: environment variables, parsed once. Pure.

use std::collections::BTreeMap;
use std::fmt;

use netweft_netstate::model::LinkName;
use serde::{Deserialize, Serialize};

use crate::error::PluginError;

/// The command of the CNI specification (`CNI_COMMAND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attaches a sandbox.
    Add,
    /// Detaches a sandbox.
    Del,
    /// Compares a sandbox with the result of ADD.
    Check,
    /// Reports whether ADD can succeed.
    Status,
    /// Removes everything that belongs to no valid attachment.
    Gc,
    /// Lists the supported versions of the specification.
    Version,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        })
    }
}

/// The owner of an attachment: a sandbox can have several links.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentId {
    /// The runtime's ID of the sandbox.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The link's name inside the sandbox.
    #[serde(rename = "ifName")]
    pub if_name: LinkName,
}

/// The pod, as far as the runtime passes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// UID of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// The environment variables, by a function that reads one.
pub struct Environment<F: Fn(&str) -> Option<String>>(pub F);

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    /// `CNI_COMMAND`.
    ///
    /// # Errors
    /// Code 4 if it is missing or unknown.
    pub fn command(&self) -> Result<Command, PluginError> {
        match self.required("CNI_COMMAND")?.as_str() {
            "ADD" => Ok(Command::Add),
            "DEL" => Ok(Command::Del),
            "CHECK" => Ok(Command::Check),
            "STATUS" => Ok(Command::Status),
            "GC" => Ok(Command::Gc),
            "VERSION" => Ok(Command::Version),
            other => Err(invalid(
                "CNI_COMMAND",
                format!(
                    "{other:?} is not a CNI command: the container runtime must set ADD, DEL, CHECK, STATUS, GC or VERSION"
                ),
            )),
        }
    }

    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    ///
    /// # Errors
    /// Code 4 if one is missing, or does not have the form of the specification.
    pub fn attachment_id(&self) -> Result<AttachmentId, PluginError> {
        let container_id = self.required("CNI_CONTAINERID")?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if !container_id.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !container_id.chars().all(allowed)
        {
            return Err(invalid(
                "CNI_CONTAINERID",
                format!(
                    "{container_id:?} is not a container ID: the container runtime must set a letter or digit, followed \
                     by letters, digits, and the characters _ . -"
                ),
            ));
        }
        let if_name = self.required("CNI_IFNAME")?;
        let if_name = if_name.parse().map_err(|_| {
            let problem = format!(
                "{if_name:?} is not a link name: the container runtime must set 1 to 15 visible characters without / and :"
            );
            invalid("CNI_IFNAME", problem)
        })?;
        Ok(AttachmentId {
            container_id,
            if_name,
        })
    }

    /// `CNI_NETNS`.
    ///
    /// # Errors
    /// Code 4 if it is missing.
    pub fn netns(&self) -> Result<String, PluginError> {
        self.required("CNI_NETNS")
    }

    /// `PATH`; empty if it is not set.
    #[must_use]
    pub fn path(&self) -> String {
        (self.0)("PATH").unwrap_or_default()
    }

    /// The pod in `CNI_ARGS`. Other keys are ignored: runtimes set `IgnoreUnknown`.
    ///
    /// # Errors
    /// Code 4 if it is not a list of `KEY=value;`.
    pub fn pod(&self) -> Result<Pod, PluginError> {
        let text = (self.0)("CNI_ARGS").unwrap_or_default();
        let pairs: Option<BTreeMap<&str, &str>> = text
            .split(';')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('='))
            .collect();
        let pairs = pairs.ok_or_else(|| {
            let problem = format!(
                "{text:?} is not a list of pairs: the container runtime must set KEY=value;KEY=value"
            );
            invalid("CNI_ARGS", problem)
        })?;
        let get = |key| {
            pairs
                .get(key)
                .filter(|value| !value.is_empty())
                .map(|value| (*value).to_owned())
        };
        Ok(Pod {
            namespace: get("K8S_POD_NAMESPACE"),
            name: get("K8S_POD_NAME"),
            uid: get("K8S_POD_UID"),
        })
    }

    fn required(&self, name: &'static str) -> Result<String, PluginError> {
        let value = (self.0)(name).filter(|value| !value.is_empty());
        let problem = "not set or empty: the container runtime must set it for this command";
        value.ok_or_else(|| invalid(name, problem.to_owned()))
    }
}

fn invalid(name: &'static str, problem: String) -> PluginError {
    PluginError::Environment { name, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(
        pairs: &'static [(&'static str, &'static str)],
    ) -> Environment<impl Fn(&str) -> Option<String>> {
        Environment(move |name: &str| {
            pairs
                .iter()
                .find(|pair| pair.0 == name)
                .map(|pair| pair.1.to_owned())
        })
    }

    #[test]
    fn invalid_cni_variable_is_named_in_error() {
        let missing = with(&[]).command().unwrap_err();
        assert_eq!(
            (
                missing.code(),
                missing.to_string().starts_with("CNI_COMMAND: ")
            ),
            (4, true)
        );
        for pairs in [
            &[("CNI_CONTAINERID", "../x"), ("CNI_IFNAME", "eth0")],
            &[("CNI_CONTAINERID", "-x"), ("CNI_IFNAME", "eth0")],
        ] {
            assert!(
                with(pairs)
                    .attachment_id()
                    .unwrap_err()
                    .to_string()
                    .starts_with("CNI_CONTAINERID: ")
            );
        }
        let error = with(&[("CNI_CONTAINERID", "x"), ("CNI_IFNAME", "a/b")])
            .attachment_id()
            .unwrap_err();
        assert!(error.to_string().starts_with("CNI_IFNAME: "));
        assert!(
            with(&[("CNI_ARGS", "x")])
                .pod()
                .unwrap_err()
                .to_string()
                .starts_with("CNI_ARGS: ")
        );
    }

    #[test]
    fn pod_identity_is_parsed_from_cni_args() {
        let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=a=b";
        let pod = Environment(|_: &str| Some(text.to_owned())).pod().unwrap();
        assert_eq!(
            (pod.namespace.as_deref(), pod.name.as_deref(), pod.uid),
            (Some("default"), Some("web-0"), None)
        );
        assert_eq!(with(&[]).pod().unwrap(), Pod::default());
    }
}
