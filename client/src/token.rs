//! The token of a service account, which the kubelet replaces in its file.

use std::io;
use std::path::PathBuf;

use http::header::{AUTHORIZATION, InvalidHeaderValue};
use http::{HeaderValue, Request};
use tracing::warn;

/// A token in a file.
#[derive(Clone, Debug)]
pub struct TokenFile(PathBuf);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// No header can have what is in the file.
    #[error(transparent)]
    Header(#[from] InvalidHeaderValue),
}

impl TokenFile {
    /// Of this file.
    pub fn new(path: String) -> Self {
        Self(path.into())
    }

    /// Signs a request. One that cannot be signed goes as it is: the API server's answer says more than we could.
    pub fn add_to<B>(&self, mut request: Request<B>) -> Request<B> {
        match self.header() {
            Ok(header) => drop(request.headers_mut().insert(AUTHORIZATION, header)),
            Err(error) => warn!(file = %self.0.display(), %error, "reading token failed"),
        }
        request
    }

    /// In memory and short, so nobody waits for it.
    fn header(&self) -> Result<HeaderValue, TokenError> {
        let token = std::fs::read_to_string(&self.0)?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim()))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_file_change_applies_to_next_request() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = TokenFile::new(file.path().display().to_string());
        for text in ["one\n", "two"] {
            std::fs::write(file.path(), text).unwrap();
            let request = token.add_to(Request::new(()));
            let header = &request.headers()[AUTHORIZATION];
            assert_eq!(header, &format!("Bearer {}", text.trim()));
            assert!(header.is_sensitive());
        }
        std::fs::remove_file(file.path()).unwrap();
        assert!(token.add_to(Request::new(())).headers().is_empty());
    }
}
