//! The connection of operator and agent to the API server.
//!
//! # Guarantees
//! - A connection to an unreachable host is closed within [`CONNECTION_TIMEOUT`], also that of an idle watch.
//! - A request fails when the API server does not begin its response within [`RESPONSE_TIMEOUT`].
//! - Each request has the token that is in the token file at that moment. (The reader of the kube library keeps a token until
//!   a time of day: for hours if the clock is set back.)

pub mod backoff;
mod token;

use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

use token::TokenFile;

/// Time limit of the TCP handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// TCP keepalive: idle time before the first probe, interval of the probes, and their number.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 3);
/// Time limit until a response begins; the API server's own limit (`--request-timeout`) is the same.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit until a connection to an unreachable host is closed.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is neither a kubeconfig nor a service account.
    #[error(
        "find the API server: neither a kubeconfig (KUBECONFIG, ~/.kube/config) nor the service account of a pod can be used"
    )]
    Unknown(#[from] kube::config::InferConfigError),
    /// The URL is invalid.
    #[error("{0} is not the URL of an API server: set for example https://192.0.2.10:6443")]
    InvalidUrl(String),
    /// The certificates or credentials cannot be used.
    #[error(
        "create a client for the API server: check the certificates and credentials of the kubeconfig or service account"
    )]
    Unusable(#[from] kube::Error),
}

/// The remedy of a failed request, to append to the error; empty if none is known.
#[must_use]
pub fn remedy(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::NetworkUnreachable) {
            return "; this node has no route to the address of the API server (by default that of the Service kubernetes): add a default route to the node, or set the chart's values apiServer.host and apiServer.port to an address and port of the API server that the node reaches";
        }
        cause = error.source();
    }
    ""
}

async fn within<T>(
    limit: Duration,
    response: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    let response = tokio::time::timeout(limit, response).await;
    response
        .map_err(|_| BoxError::from(format!("no response from the API server within {limit:?}")))?
}

/// A client by kubeconfig or by the service account of the pod, for the API server at `url` if given.
///
/// # Errors
/// When there is neither a kubeconfig nor a service account, or it cannot be used.
pub async fn connect(url: Option<&str>) -> Result<Client, ConnectError> {
    let mut config = Config::infer().await?;
    if let Some(url) = url {
        let parsed = url.parse();
        config.cluster_url = parsed.map_err(|_| ConnectError::InvalidUrl(url.to_owned()))?;
    }
    Ok(client(config)?)
}

/// A client with this configuration.
///
/// # Errors
/// When the certificates or credentials cannot be used.
pub fn client(mut config: Config) -> Result<Client, kube::Error> {
    let token = match config.auth_info.token {
        None => config.auth_info.token_file.take().map(TokenFile::new),
        Some(_) => None,
    };
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let (idle_time, interval, probes) = KEEPALIVE;
    connector.set_keepalive(Some(idle_time));
    connector.set_keepalive_interval(Some(interval));
    connector.set_keepalive_retries(Some(probes));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http = HttpClient::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_request(move |request: http::Request<Body>| match &token {
            Some(token) => token.add_to(request),
            None => request,
        })
        .map_future(|response| within(RESPONSE_TIMEOUT, response))
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[tokio::test]
    async fn request_without_response_times_out() {
        let response = std::future::pending::<Result<(), BoxError>>();
        let error = within(Duration::from_millis(1), response).await;
        assert_eq!(
            error.unwrap_err().to_string(),
            "no response from the API server within 1ms"
        );
    }

    #[test]
    fn unreachable_api_server_error_names_host_setting() {
        #[derive(Debug, thiserror::Error)]
        #[error("client error (Connect)")]
        struct Connect(#[source] io::Error);
        // ENETUNREACH, ECONNREFUSED
        for (number, has_remedy) in [(101, true), (111, false)] {
            let error = Connect(io::Error::from_raw_os_error(number));
            let remedy = remedy(&error).contains("apiServer.host and apiServer.port");
            assert_eq!(remedy, has_remedy);
        }
    }
}
