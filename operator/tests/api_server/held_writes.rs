//! [`Gate`]: a way to the API server on which writes to our objects are counted, and held from a number on.
//!
//! So an operator can be killed after exactly its n-th write, and a write can be late, without the operator's knowing:
//! to it the gate is the API server, over plain HTTP. Leases, definitions and Events pass uncounted.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::control_plane::ControlPlane;

/// The gate; with it end all connections through it.
pub struct Gate {
    /// Where it listens.
    pub url: String,
    counts: Arc<Counts>,
    _server: JoinSet<()>,
}

/// Who has come, and who may pass.
struct Counts {
    /// To the API server, with the rights of whoever asks.
    client: Client,
    /// Numbers up to this one pass.
    limit: watch::Sender<usize>,
    arrived: watch::Sender<usize>,
    answered: watch::Sender<usize>,
}

impl Gate {
    /// A gate through which `limit` writes pass.
    pub async fn open_for(plane: &ControlPlane, limit: usize) -> Self {
        let counts = Arc::new(Counts {
            client: plane.client_of_anybody(),
            limit: watch::Sender::new(limit),
            arrived: watch::Sender::new(0),
            answered: watch::Sender::new(0),
        });
        let router = Router::new().fallback(pass).with_state(counts.clone());
        let (url, server) = serve(router).await;
        Self {
            url,
            counts,
            _server: server,
        }
    }

    /// How many writes are held.
    pub fn held(&self) -> usize {
        let arrived = *self.counts.arrived.borrow();
        arrived.saturating_sub(*self.counts.limit.borrow())
    }

    /// How many writes the API server has answered.
    pub fn answered(&self) -> usize {
        *self.counts.answered.borrow()
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.counts.limit.send_replace(usize::MAX);
    }
}

/// Serves on loopback as long as the set lives; returns where.
pub async fn serve(router: Router) -> (String, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, server)
}

async fn pass(State(counts): State<Arc<Counts>>, request: Request) -> Response {
    let is_write = request.method() != Method::GET;
    let counted = is_write && request.uri().path().starts_with("/apis/netweft.io/");
    if counted {
        let mut number = 0;
        counts.arrived.send_modify(|arrived| {
            *arrived += 1;
            number = *arrived;
        });
        let mut limit = counts.limit.subscribe();
        limit.wait_for(|limit| number <= *limit).await.unwrap();
    }
    let answer = forward(&counts.client, request).await;
    if counted {
        counts.answered.send_modify(|answered| *answered += 1);
    }
    answer
}

/// Asks the API server itself, with the rights of whoever asks.
pub async fn forward(client: &Client, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
    let request = Request::from_parts(head, kube::client::Body::from(body));
    match client.send(request).await {
        Ok(answer) => {
            let (mut head, body) = answer.into_parts();
            // How the body is cut into pieces is decided anew on this side.
            head.headers.remove(header::TRANSFER_ENCODING);
            head.headers.remove(header::CONNECTION);
            Response::from_parts(head, Body::new(body))
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
