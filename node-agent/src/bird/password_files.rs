//! The passwords of sessions: files of the agents' Secret, one per key.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::desired::bird::Bird;
use crate::desired::bird::password::{BadPassword, Password};

/// Why a session has no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The file does not exist or cannot be read.
    #[error(
        "the password of the session is missing (key {key} of the agents' Secret): check whether the Secret and the key of spec.password.secretKeyRef of the BGPPeer exist"
    )]
    Missing {
        /// The key.
        key: String,
        /// The cause; `None`: no file of a Secret can have this name.
        source: Option<io::Error>,
    },
    /// The content of the file is not a password.
    #[error(
        "the password of the session (key {key} of the agents' Secret) {cause}: choose another"
    )]
    Unusable {
        /// The key.
        key: String,
        /// The cause.
        cause: BadPassword,
    },
}

/// The passwords that sessions need, by key.
pub fn passwords(bird: &Bird, dir: &Path) -> BTreeMap<String, Result<Password, PasswordError>> {
    let keys = bird.sessions.iter();
    let keys = keys.filter_map(|session| session.session.password_key.as_ref());
    keys.map(|key| (key.clone(), read(key, dir))).collect()
}

fn read(key: &str, dir: &Path) -> Result<Password, PasswordError> {
    let missing = |source| PasswordError::Missing {
        key: key.to_owned(),
        source,
    };
    let is_valid = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    // The volume of a Secret uses names that begin with two dots.
    if key.starts_with("..") || key == "." || !key.chars().all(is_valid) {
        return Err(missing(None));
    }
    let bytes = std::fs::read(dir.join(key)).map_err(|error| missing(Some(error)))?;
    Password::parse(&bytes).map_err(|cause| PasswordError::Unusable {
        key: key.to_owned(),
        cause,
    })
}
