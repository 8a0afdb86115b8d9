//! Secrets with passwords of BGP sessions, reduced to the fields in use.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1 as core;

/// Maximum length of a TCP MD5 key in bytes (`TCP_MD5SIG_MAXKEYLEN` in Linux).
const MAX_LENGTH: usize = 80;

/// A password. Its value is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Password {
    /// A password of these bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes, for the request that stores them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Why the password is unusable, with the remedy.
    #[must_use]
    pub fn fault(&self) -> Option<&'static str> {
        let plain = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'"';
        match self.0.as_slice() {
            [] => Some("is empty"),
            [.., b'\n'] => Some("ends with a newline; remove the newline, for example with printf"),
            password if password.len() > MAX_LENGTH => {
                Some("is longer than 80 bytes, the maximum of TCP MD5")
            }
            password if !password.iter().all(plain) => {
                Some("has a quotation mark or characters other than printable ASCII")
            }
            _ => None,
        }
    }
}

/// Label of the Secrets with passwords of BGP sessions.
///
/// A BGPPeer names a Secret, and its author needs no rights on Secrets. Without the label, the author could read any key of the release's
/// namespace by the session with a router.
pub const LABEL: (&str, &str) = ("netweft.io/bgp-password", "true");

/// A Secret, reduced to the fields in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secret {
    /// UID of the Secret.
    pub uid: Option<String>,
    /// Resource version of the Secret.
    pub resource_version: Option<String>,
    /// Whether the Secret has the label [`LABEL`].
    pub labelled: bool,
    /// Data of the Secret.
    pub keys: BTreeMap<String, Password>,
}

impl From<&core::Secret> for Secret {
    fn from(secret: &core::Secret) -> Self {
        let keys = secret.data.iter().flatten();
        Self {
            uid: secret.metadata.uid.clone(),
            resource_version: secret.metadata.resource_version.clone(),
            labelled: {
                let (key, value) = LABEL;
                let labels = secret.metadata.labels.as_ref();
                labels
                    .and_then(|labels| labels.get(key))
                    .is_some_and(|it| it == value)
            },
            keys: keys
                .map(|(key, value)| (key.clone(), Password::new(value.0.clone())))
                .collect(),
        }
    }
}

/// Changes of the agents' Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswordChange {
    /// UID and resource version of the Secret that the plan is based on; `None`: it does not exist.
    pub seen: Option<(Option<String>, Option<String>)>,
    /// Keys to set.
    pub set: BTreeMap<String, Password>,
    /// Keys to remove.
    pub remove: BTreeSet<String>,
}
