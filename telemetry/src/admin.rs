//! The admin server: `/livez`, `/readyz` and `/metrics` by HTTP. A program gives its checks and its metrics.

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

/// Why a check fails: the text of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhealthy(pub String);

impl From<&str> for Unhealthy {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

/// The result of a check.
pub type Verdict = Result<(), Unhealthy>;

type Check = Box<dyn Fn() -> Verdict + Send + Sync>;
type Text = Box<dyn Fn() -> Result<String, fmt::Error> + Send + Sync>;

/// What the paths answer. Each is asked for at every request.
pub struct Endpoints {
    livez: Check,
    readyz: Option<Check>,
    metrics: Text,
}

impl Endpoints {
    /// `/livez` answers by the check and `/metrics` with the text; there is no `/readyz`.
    pub fn new(
        livez: impl Fn() -> Verdict + Send + Sync + 'static,
        metrics: impl Fn() -> Result<String, fmt::Error> + Send + Sync + 'static,
    ) -> Self {
        Self {
            livez: Box::new(livez),
            readyz: None,
            metrics: Box::new(metrics),
        }
    }

    /// `/readyz` answers by the check.
    #[must_use]
    pub fn with_readyz(mut self, readyz: impl Fn() -> Verdict + Send + Sync + 'static) -> Self {
        self.readyz = Some(Box::new(readyz));
        self
    }

    /// What `/livez` says.
    ///
    /// # Errors
    /// The program does not work any more and has to be started again.
    pub fn livez(&self) -> Verdict {
        (self.livez)()
    }

    /// What `/readyz` says; without that path, that the program is ready.
    ///
    /// # Errors
    /// The program is not ready.
    pub fn readyz(&self) -> Verdict {
        self.readyz.as_ref().map_or(Ok(()), |check| check())
    }

    /// What `/metrics` says.
    ///
    /// # Errors
    /// A metric cannot be encoded.
    pub fn metrics(&self) -> Result<String, fmt::Error> {
        (self.metrics)()
    }

    /// Serves until `stop`; what is being answered then is answered.
    ///
    /// # Errors
    /// The listener is broken.
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
        let livez = get(async |State(all): State<Arc<Self>>| verdict(all.livez()));
        let readyz = get(async |State(all): State<Arc<Self>>| verdict(all.readyz()));
        let metrics = get(async |State(all): State<Arc<Self>>| text(all.metrics()));
        let mut router = Router::new()
            .route("/livez", livez)
            .route("/metrics", metrics);
        if self.readyz.is_some() {
            router = router.route("/readyz", readyz);
        }
        router.with_state(Arc::new(self))
    }
}

fn verdict(verdict: Verdict) -> (StatusCode, String) {
    match verdict {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(Unhealthy(why)) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
    }
}

fn text(text: Result<String, fmt::Error>) -> Response {
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The check of a loop whose last beat was so long ago, if that is too long (`Heartbeat::stalled`).
///
/// # Errors
/// The loop has stalled.
pub fn running(name: &str, stalled: Option<Duration>) -> Verdict {
    stalled.map_or(Ok(()), |since| {
        let why = format!("{name} stalled for {} s", since.as_secs());
        Err(Unhealthy(why))
    })
}

/// The address of the admin server cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} ({flag})")]
pub struct ListenError {
    address: SocketAddr,
    flag: &'static str,
    source: io::Error,
}

/// Opens the port. `flag` is the one that the address is from.
///
/// # Errors
/// The port is taken, or the address is not this machine's.
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

    /// The answers to each of the three, with their headers.
    async fn answers(endpoints: Endpoints) -> [String; 3] {
        let listener = listen(LOCAL.into(), "--listen").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(endpoints.serve(listener, async {
            drop(stopped.await);
        }));
        let mut answers = Vec::new();
        for path in ["livez", "readyz", "metrics"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET /{path} HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answers.push(answer);
        }
        drop(stop);
        server.await.unwrap().unwrap();
        answers.try_into().unwrap()
    }

    fn statuses(answers: &[String; 3]) -> [&str; 3] {
        answers
            .each_ref()
            .map(|answer| &answer["HTTP/1.0 ".len()..][..3])
    }

    #[tokio::test]
    async fn failed_check_answers_503_with_reason() {
        let endpoints = Endpoints::new(|| running("reconcile loop", None), || Ok(String::new()))
            .with_readyz(|| Err("not all objects have been listed yet".into()));
        let ready = answers(endpoints).await;
        assert_eq!(statuses(&ready), ["200", "503", "200"]);
        assert!(ready[0].ends_with("\r\n\r\nok\n"), "{ready:?}");
        let why = "\r\n\r\nnot all objects have been listed yet\n";
        assert!(ready[1].ends_with(why), "{ready:?}");
    }

    #[tokio::test]
    async fn stalled_loop_fails_livez_with_duration() {
        let stalled = || running("reconcile loop", Some(Duration::from_millis(130_900)));
        let stalled = answers(Endpoints::new(stalled, || Ok(String::new()))).await;
        assert_eq!(
            statuses(&stalled),
            ["503", "404", "200"],
            "there is no check for /readyz"
        );
        let why = "\r\n\r\nreconcile loop stalled for 130 s\n";
        assert!(stalled[0].ends_with(why), "{stalled:?}");
    }

    #[tokio::test]
    async fn metrics_response_has_openmetrics_content_type() {
        let numbers = || Ok("netweft_x_total 1\n# EOF\n".to_owned());
        let [_, _, metrics] = answers(Endpoints::new(|| Ok(()), numbers)).await;
        let header = format!("content-type: {OPENMETRICS}\r\n");
        assert!(metrics.contains(&header), "{metrics}");
        assert!(metrics.ends_with("\r\n\r\nnetweft_x_total 1\n# EOF\n"));
        let broken = Endpoints::new(|| Ok(()), || Err(fmt::Error));
        assert_eq!(statuses(&answers(broken).await), ["200", "404", "500"]);
    }

    #[tokio::test]
    async fn taken_listen_port_is_named_in_error() {
        let taken = listen(LOCAL.into(), "--listen").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen(address, "--listen").await.unwrap_err();
        assert_eq!(error.to_string(), format!("listen on {address} (--listen)"));
        assert!(error.source().is_some());
    }
}
