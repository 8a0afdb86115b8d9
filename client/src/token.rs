//! The token of a service account. The kubelet replaces the token file before the token expires.

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
    /// The content of the file is not valid in a header.
    #[error(transparent)]
    Header(#[from] InvalidHeaderValue),
}

impl TokenFile {
    /// The token in the file at `path`.
    pub fn new(path: String) -> Self {
        Self(path.into())
    }

    /// Adds the token to a request. Without a token, the request is sent nevertheless, and the API server refuses it.
    pub fn add_to<B>(&self, mut request: Request<B>) -> Request<B> {
        match self.header() {
            Ok(header) => drop(request.headers_mut().insert(AUTHORIZATION, header)),
            Err(error) => warn!(file = %self.0.display(), %error, "reading token failed"),
        }
        request
    }

    /// Reads the file on the calling thread: the file is short and in memory (tmpfs).
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
