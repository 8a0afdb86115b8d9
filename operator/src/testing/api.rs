//! Clients of an API server whose responses a test chooses.

use std::future::ready;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use kube::core::Status;
use kube::{Client, Config};

/// A client of a server on loopback. `respond` returns the response for the path of a request.
pub async fn responding_client<R>(respond: R) -> Client
where
    R: Fn(&str) -> (StatusCode, String) + Clone + Send + Sync + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let handler = move |request: Request| ready(respond(request.uri().path()));
    let router = Router::new().fallback(handler);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let mut config = Config::new(url.parse().unwrap());
    // An empty list of root certificates: loading those of the machine is slow and not needed.
    config.root_cert = Some(Vec::new());
    Client::try_from(config).unwrap()
}

/// A client of a server on loopback that accepts every connection and sends no response.
pub async fn unresponsive_client() -> Client {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.push(stream);
        }
    });
    let mut config = Config::new(url.parse().unwrap());
    config.root_cert = Some(Vec::new());
    Client::try_from(config).unwrap()
}

/// The response of an API server that refuses a request.
pub fn error_response(code: StatusCode, reason: &str) -> (StatusCode, String) {
    let status = Status::failure("refused by the test", reason).with_code(code.as_u16());
    (code, serde_json::to_string(&status).unwrap())
}
