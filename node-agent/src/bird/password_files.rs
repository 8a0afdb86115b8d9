//! The passwords of sessions as files of the agents' Secret, one for each key.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::desired::bird::Bird;
use crate::desired::bird::password::{BadPassword, Password};

/// Why a session has no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// There is no such file, or it cannot be read.
    #[error(
        "the password of the session is missing (key {key} of the agents' Secret): check whether the Secret and the key of spec.password.secretKeyRef of the BGPPeer exist"
    )]
    Missing {
        /// The key.
        key: String,
        /// Why the file cannot be read; `None`: no file can have this name.
        source: Option<io::Error>,
    },
    /// The file has no password.
    #[error("the password of the session (key {key} of the agents' Secret) {why}: choose another")]
    Unusable {
        /// The key.
        key: String,
        /// What is wrong with it.
        why: BadPassword,
    },
}

/// The passwords that sessions need, by key.
pub fn passwords(bird: &Bird, dir: &Path) -> BTreeMap<String, Result<Password, PasswordError>> {
    let keys = bird.sessions.iter();
    let keys = keys.filter_map(|one| one.session.password_key.as_ref());
    keys.map(|key| (key.clone(), read(key, dir))).collect()
}

fn read(key: &str, dir: &Path) -> Result<Password, PasswordError> {
    let missing = |source| PasswordError::Missing {
        key: key.to_owned(),
        source,
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    // Such names are the volume's own.
    if key.starts_with("..") || key == "." || !key.chars().all(legal) {
        return Err(missing(None));
    }
    let bytes = std::fs::read(dir.join(key)).map_err(|error| missing(Some(error)))?;
    Password::parse(&bytes).map_err(|why| PasswordError::Unusable {
        key: key.to_owned(),
        why,
    })
}
