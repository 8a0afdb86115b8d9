//! How operator and agent reach the API server, and go on reaching it: over a network that loses hosts without a word, under a clock
//! that somebody sets.
//!
//! # Guarantees
//! - A connection to a host that has vanished is given up within [`GIVEN_UP`], a watch that only listens among them.
//! - An API server that takes a request and does not begin to answer is given up within [`ANSWER`].
//! - The token is the one in the file when a request is sent. (The library's own reader keeps it until a time of day, for hours if the
//!   clock is put back.)

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

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// When a silent host is asked for a sign of life, how often then, and how often in vain.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 3);
/// How long the API server may take until its answer begins; its own limit (`--request-timeout`) is as long.
pub const ANSWER: Duration = Duration::from_secs(60);
/// For how long a host may be silent.
pub const GIVEN_UP: Duration = Duration::from_secs(30);

/// There is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor a service account says where it is.
    #[error("find out how to reach the API server")]
    Unknown(#[from] kube::config::InferConfigError),
    /// Not a URL.
    #[error("{0} is no URL of an API server, write for example https://192.0.2.10:6443")]
    NoUrl(String),
    /// What is said of certificates or credentials cannot be used.
    #[error("make a client for the API server")]
    Unusable(#[from] kube::Error),
}

/// What somebody can do about a request that failed, to be put behind the error; empty if nothing is known.
#[must_use]
pub fn advice(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::NetworkUnreachable) {
            return "; this node has no route to the API server's address, which is that of the Service kubernetes unless told otherwise: give the node a default route, or set the chart's values apiServer.host and apiServer.port to an address and port of the API server that the node reaches";
        }
        cause = error.source();
    }
    ""
}

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    let answered = tokio::time::timeout(limit, answer).await;
    answered
        .map_err(|_| BoxError::from(format!("no answer from the API server within {limit:?}")))?
}

/// A client by kubeconfig or by the pod's service account, for the API server at `url` if that is given.
///
/// # Errors
/// It is not known where the API server is, or who asks.
pub async fn connect(url: Option<&str>) -> Result<Client, ConnectError> {
    let mut config = Config::infer().await?;
    if let Some(url) = url {
        let parsed = url.parse();
        config.cluster_url = parsed.map_err(|_| ConnectError::NoUrl(url.to_owned()))?;
    }
    Ok(client(config)?)
}

/// A client with this configuration.
///
/// # Errors
/// Certificates or credentials cannot be used.
pub fn client(mut config: Config) -> Result<Client, kube::Error> {
    let token = match config.auth_info.token {
        None => config.auth_info.token_file.take().map(TokenFile::new),
        Some(_) => None,
    };
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    let (after, every, times) = KEEPALIVE;
    connector.set_keepalive(Some(after));
    connector.set_keepalive_interval(Some(every));
    connector.set_keepalive_retries(Some(times));
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
        .map_future(|answer| within(ANSWER, answer))
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
        let silent = std::future::pending::<Result<(), BoxError>>();
        let error = within(Duration::from_millis(1), silent).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "no answer from the API server within 1ms"
        );
    }

    #[test]
    fn unreachable_api_server_error_names_host_setting() {
        #[derive(Debug, thiserror::Error)]
        #[error("client error (Connect)")]
        struct Connect(#[source] io::Error);
        // ENETUNREACH, ECONNREFUSED
        for (number, advised) in [(101, true), (111, false)] {
            let error = Connect(io::Error::from_raw_os_error(number));
            let advised_of = advice(&error).contains("apiServer.host and apiServer.port");
            assert_eq!(advised_of, advised);
        }
    }
}
