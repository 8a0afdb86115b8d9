//! The connection to the API server.

use std::future::Future;
use std::time::Duration;

use kube::{Client, Config};

use crate::error::{Cause, RequestError};

/// A request that has no answer by then is given up; the client itself would wait for minutes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client by kubeconfig or by the pod's service account.
///
/// # Errors
/// When there is neither, or `api_server` is no URL.
pub async fn connect(api_server: Option<&str>) -> anyhow::Result<Client> {
    use anyhow::Context;
    let mut config = Config::infer()
        .await
        .context("find out how to reach the API server")?;
    if let Some(url) = api_server {
        config.cluster_url = url
            .parse()
            .with_context(|| format!("parse --api-server {url}"))?;
    }
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).context("make a client for the API server")
}

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
    let cause = match tokio::time::timeout(PATIENCE, request).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => Cause::Api(error),
        Err(_) => Cause::Timeout(PATIENCE),
    };
    Err(RequestError {
        verb,
        kind,
        name: name.to_owned(),
        source: cause,
    })
}
