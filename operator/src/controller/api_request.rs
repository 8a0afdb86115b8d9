//! Requests to the API server.

use std::future::Future;
use std::time::Duration;

use crate::controller::api_request_error::{Cause, RequestError};

/// A request that has no answer by then is given up; the client itself would wait for minutes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits for `request`, but not for ever, and says what it was if it fails.
///
/// # Errors
/// When the request fails or takes too long.
pub async fn request<T>(
    verb: &'static str,
    kind: &'static str,
    name: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, RequestError> {
    let cause = match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => Cause::Api(error),
        Err(_) => Cause::Timeout(REQUEST_TIMEOUT),
    };
    Err(RequestError {
        verb,
        kind,
        name: name.to_owned(),
        source: cause,
    })
}
