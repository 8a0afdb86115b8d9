//! [`Wire`]: a way to the API server on which bytes are counted, as they are on the wire, TLS included.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::control_plane::ControlPlane;

/// The way; with it end all connections over it.
pub struct Wire {
    /// Where it begins.
    pub url: String,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    _listener: JoinSet<()>,
}

impl Wire {
    /// A way to the API server of `plane`.
    pub async fn to(plane: &ControlPlane) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let server = plane.url().trim_start_matches("https://").to_owned();
        let (sent, received) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let counts = (sent.clone(), received.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let Ok(far) = TcpStream::connect(&server).await else {
                    continue;
                };
                let (near, far) = (near.into_split(), far.into_split());
                connections.spawn(carry(near.0, far.1, counts.0.clone()));
                connections.spawn(carry(far.0, near.1, counts.1.clone()));
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

    /// Bytes to the API server and from it, so far.
    pub fn bytes(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.sent), of(&self.received))
    }
}

/// Carries one direction of a connection to its end.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(length.try_into().unwrap(), Ordering::Relaxed);
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
