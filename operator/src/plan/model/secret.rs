//! Secrets with passwords of BGP sessions, as far as a plan looks at them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1 as core;

/// Most bytes of a key of TCP MD5 (`TCP_MD5SIG_MAXKEYLEN` in Linux).
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

    /// What is wrong with it, and what to do.
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

/// A Secret as far as it is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secret {
    /// Its UID.
    pub uid: Option<String>,
    /// Its version.
    pub resource_version: Option<String>,
    /// Its keys.
    pub keys: BTreeMap<String, Password>,
}

impl From<&core::Secret> for Secret {
    fn from(secret: &core::Secret) -> Self {
        let keys = secret.data.iter().flatten();
        Self {
            uid: secret.metadata.uid.clone(),
            resource_version: secret.metadata.resource_version.clone(),
            keys: keys
                .map(|(key, value)| (key.clone(), Password::new(value.0.clone())))
                .collect(),
        }
    }
}

/// How the agents' Secret has to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswordChange {
    /// The Secret that was looked at: UID and version; none: there is none.
    pub seen: Option<(Option<String>, Option<String>)>,
    /// Keys to set.
    pub set: BTreeMap<String, Password>,
    /// Keys to take away.
    pub remove: BTreeSet<String>,
}
