//! [`ByteCountingProxy`]: a proxy to the API server that counts the bytes on the wire, with TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::control_plane::ControlPlane;

/// The proxy. Dropping it closes all connections.
pub struct ByteCountingProxy {
    /// URL of the proxy.
    pub url: String,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    _listener: JoinSet<()>,
}

impl ByteCountingProxy {
    /// Starts a proxy to the API server of `plane`.
    pub async fn start(plane: &ControlPlane) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let server = plane.url().trim_start_matches("https://").to_owned();
        let (sent, received) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let counts = (sent.clone(), received.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(server_side) = TcpStream::connect(&server).await else {
                    continue;
                };
                let (client, server_side) = (client.into_split(), server_side.into_split());
                connections.spawn(copy_and_count(client.0, server_side.1, counts.0.clone()));
                connections.spawn(copy_and_count(server_side.0, client.1, counts.1.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            url,
            sent,
            received,
            _listener: task,
        }
    }

    /// Bytes sent to and received from the API server so far.
    pub fn bytes(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.sent), load(&self.received))
    }
}

/// Copies one direction of a connection until it is closed.
async fn copy_and_count(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(length.try_into().unwrap(), Ordering::Relaxed);
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
