//! The admin server: `/livez`, `/readyz` and `/metrics` by HTTP, with the checks and metrics of a program.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::info;

/// The media type of metrics (OpenMetrics 1.0, section 4).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why a check fails: the text of the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhealthy(pub String);

impl From<&str> for Unhealthy {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

/// The result of a check.
pub type CheckResult = Result<(), Unhealthy>;

type Check = Box<dyn Fn() -> CheckResult + Send + Sync>;
type Text = Box<dyn Fn() -> Result<String, fmt::Error> + Send + Sync>;

/// The checks and metrics, evaluated at each request.
pub struct Endpoints {
    livez: Check,
    readyz: Option<Check>,
    metrics: Text,
}

impl Endpoints {
    /// `/livez` with this check, `/metrics` with this text, and no `/readyz`.
    pub fn new(
        livez: impl Fn() -> CheckResult + Send + Sync + 'static,
        metrics: impl Fn() -> Result<String, fmt::Error> + Send + Sync + 'static,
    ) -> Self {
        Self {
            livez: Box::new(livez),
            readyz: None,
            metrics: Box::new(metrics),
        }
    }

    /// Adds `/readyz` with this check.
    #[must_use]
    pub fn with_readyz(mut self, readyz: impl Fn() -> CheckResult + Send + Sync + 'static) -> Self {
        self.readyz = Some(Box::new(readyz));
        self
    }

    /// The result of `/livez`.
    ///
    /// # Errors
    /// When the program must be restarted.
    pub fn livez(&self) -> CheckResult {
        (self.livez)()
    }

    /// The result of `/readyz`; success if there is no such path.
    ///
    /// # Errors
    /// When the program is not ready.
    pub fn readyz(&self) -> CheckResult {
        self.readyz.as_ref().map_or(Ok(()), |check| check())
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn metrics(&self) -> Result<String, fmt::Error> {
        (self.metrics)()
    }

    /// Serves until `stop`, and then completes the open requests.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        info!(address = %listener.local_addr()?, "admin server started");
        axum::serve(listener, self.router())
            .with_graceful_shutdown(stop)
            .await
    }

    fn router(self) -> Router {
        let livez = get(async |State(all): State<Arc<Self>>| check_response(all.livez()));
        let readyz = get(async |State(all): State<Arc<Self>>| check_response(all.readyz()));
        let metrics = get(async |State(all): State<Arc<Self>>| metrics_response(all.metrics()));
        let mut router = Router::new()
            .route("/livez", livez)
            .route("/metrics", metrics);
        if self.readyz.is_some() {
            router = router.route("/readyz", readyz);
        }
        router.with_state(Arc::new(self))
    }
}

fn check_response(result: CheckResult) -> (StatusCode, String) {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(Unhealthy(reason)) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}

fn metrics_response(text: Result<String, fmt::Error>) -> Response {
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The check of a loop by its heartbeat (`Heartbeat::stalled`).
///
/// # Errors
/// When the loop has stalled.
pub fn check_heartbeat(name: &str, stalled: Option<Duration>) -> CheckResult {
    stalled.map_or(Ok(()), |since| {
        let reason = format!("{name} stalled for {} s", since.as_secs());
        Err(Unhealthy(reason))
    })
}

/// The admin server cannot listen on its address.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: set {flag} to a free port of an address of this machine")]
pub struct ListenError {
    address: SocketAddr,
    flag: &'static str,
    source: io::Error,
}

/// Opens the port. `flag` is the command-line flag with the address.
///
/// # Errors
/// When another program listens on the port, or the address is not one of this machine.
pub async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, ListenError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| ListenError {
        address,
        flag,
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;

    const LOCAL: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

    /// The responses of the three paths, with their headers.
    async fn responses(endpoints: Endpoints) -> [String; 3] {
        let listener = listen(LOCAL.into(), "--listen").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(endpoints.serve(listener, async {
            drop(stopped.await);
        }));
        let mut responses = Vec::new();
        for path in ["livez", "readyz", "metrics"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET /{path} HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).await.unwrap();
            responses.push(response);
        }
        drop(stop);
        server.await.unwrap().unwrap();
        responses.try_into().unwrap()
    }

    fn statuses(responses: &[String; 3]) -> [&str; 3] {
        responses
            .each_ref()
            .map(|response| &response["HTTP/1.0 ".len()..][..3])
    }

    #[tokio::test]
    async fn failed_check_responds_503_with_reason() {
        let livez = || check_heartbeat("reconcile loop", None);
        let endpoints = Endpoints::new(livez, || Ok(String::new()))
            .with_readyz(|| Err("not all objects have been listed yet".into()));
        let unready = responses(endpoints).await;
        assert_eq!(statuses(&unready), ["200", "503", "200"]);
        assert!(unready[0].ends_with("\r\n\r\nok\n"), "{unready:?}");
        let reason = "\r\n\r\nnot all objects have been listed yet\n";
        assert!(unready[1].ends_with(reason), "{unready:?}");
    }

    #[tokio::test]
    async fn stalled_loop_fails_livez_with_duration() {
        let stalled = || check_heartbeat("reconcile loop", Some(Duration::from_millis(130_900)));
        let stalled = responses(Endpoints::new(stalled, || Ok(String::new()))).await;
        assert_eq!(
            statuses(&stalled),
            ["503", "404", "200"],
            "there is no check for /readyz"
        );
        let reason = "\r\n\r\nreconcile loop stalled for 130 s\n";
        assert!(stalled[0].ends_with(reason), "{stalled:?}");
    }

    #[tokio::test]
    async fn metrics_response_has_openmetrics_content_type() {
        let text = || Ok("netweft_x_total 1\n# EOF\n".to_owned());
        let [_, _, metrics] = responses(Endpoints::new(|| Ok(()), text)).await;
        let header = format!("content-type: {OPENMETRICS}\r\n");
        assert!(metrics.contains(&header), "{metrics}");
        assert!(metrics.ends_with("\r\n\r\nnetweft_x_total 1\n# EOF\n"));
        let failing = Endpoints::new(|| Ok(()), || Err(fmt::Error));
        assert_eq!(statuses(&responses(failing).await), ["200", "404", "500"]);
    }

    #[tokio::test]
    async fn listen_port_in_use_is_named_in_error() {
        let first = listen(LOCAL.into(), "--listen").await.unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address, "--listen").await.unwrap_err();
        let expected = format!(
            "listen on {address}: set --listen to a free port of an address of this machine"
        );
        assert_eq!(error.to_string(), expected);
        assert!(error.source().is_some());
    }
}
