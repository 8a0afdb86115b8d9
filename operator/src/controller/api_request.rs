//! Requests to the API server.

use std::future::Future;
use std::time::Duration;

use crate::controller::api_request_error::{Cause, RequestError};

/// Time limit of a request. The client's own limit is minutes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends `request` with a time limit. An error names the request.
///
/// # Errors
/// The request fails or exceeds the time limit.
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
