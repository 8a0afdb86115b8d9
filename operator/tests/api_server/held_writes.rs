//! [`WriteGate`]: a proxy to the API server that counts writes to netweft's objects, and holds them from a given number
//! on.
//!
//! So an operator can be killed after exactly n writes, and a write can be delayed. The operator uses the proxy as its
//! API server, over plain HTTP. Leases, CRDs and Events are not counted.

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

/// The proxy. Dropping it closes all connections.
pub struct WriteGate {
    /// URL of the proxy.
    pub url: String,
    state: Arc<GateState>,
    _server: JoinSet<()>,
}

/// The counters of the proxy.
struct GateState {
    /// Client of the API server without credentials. Requests carry their own.
    client: Client,
    /// Writes up to this number pass.
    limit: watch::Sender<usize>,
    arrived: watch::Sender<usize>,
    answered: watch::Sender<usize>,
}

impl WriteGate {
    /// Starts a proxy that lets `limit` writes pass.
    pub async fn start(plane: &ControlPlane, limit: usize) -> Self {
        let state = Arc::new(GateState {
            client: plane.client_without_credentials(),
            limit: watch::Sender::new(limit),
            arrived: watch::Sender::new(0),
            answered: watch::Sender::new(0),
        });
        let router = Router::new().fallback(handle).with_state(state.clone());
        let (url, server) = serve(router).await;
        Self {
            url,
            state,
            _server: server,
        }
    }

    /// Number of held writes.
    pub fn held(&self) -> usize {
        let arrived = *self.state.arrived.borrow();
        arrived.saturating_sub(*self.state.limit.borrow())
    }

    /// Number of writes that the API server has answered.
    pub fn answered(&self) -> usize {
        *self.state.answered.borrow()
    }

    /// Lets all writes pass from now on.
    pub fn open(&self) {
        self.state.limit.send_replace(usize::MAX);
    }
}

/// Serves on loopback until the set is dropped. Returns the URL.
pub async fn serve(router: Router) -> (String, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, server)
}

async fn handle(State(state): State<Arc<GateState>>, request: Request) -> Response {
    let is_write = request.method() != Method::GET;
    let counted = is_write && request.uri().path().starts_with("/apis/netweft.io/");
    if counted {
        let mut number = 0;
        state.arrived.send_modify(|arrived| {
            *arrived += 1;
            number = *arrived;
        });
        let mut limit = state.limit.subscribe();
        limit.wait_for(|limit| number <= *limit).await.unwrap();
    }
    let response = forward(&state.client, request).await;
    if counted {
        state.answered.send_modify(|answered| *answered += 1);
    }
    response
}

/// Forwards a request to the API server with the credentials of the request.
pub async fn forward(client: &Client, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
    let request = Request::from_parts(head, kube::client::Body::from(body));
    match client.send(request).await {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            // This connection has its own transfer encoding.
            head.headers.remove(header::TRANSFER_ENCODING);
            head.headers.remove(header::CONNECTION);
            Response::from_parts(head, Body::new(body))
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
