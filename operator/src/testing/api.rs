//! An API server with the answers of a test.

use std::future::ready;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use kube::core::Status;
use kube::{Client, Config};

/// A client of a server on loopback that answers every request, by its path, with what `answer` says.
pub async fn answering<A>(answer: A) -> Client
where
    A: Fn(&str) -> (StatusCode, String) + Clone + Send + Sync + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = move |request: Request| ready(answer(request.uri().path()));
    let router = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let mut config = Config::new(url.parse().unwrap());
    // Nobody is trusted: what the machine trusts would have to be read.
    config.root_cert = Some(Vec::new());
    Client::try_from(config).unwrap()
}

/// A client of a server on loopback that takes every request and answers none.
pub async fn hanging() -> Client {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let mut config = Config::new(url.parse().unwrap());
    config.root_cert = Some(Vec::new());
    Client::try_from(config).unwrap()
}

/// The answer of an API server that refuses.
pub fn refusal(code: StatusCode, reason: &str) -> (StatusCode, String) {
    let status = Status::failure("as the test says", reason).with_code(code.as_u16());
    (code, serde_json::to_string(&status).unwrap())
}
