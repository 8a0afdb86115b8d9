//! Writes the status to the API server, or to a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use netweft_crds::{NodeNetwork, NodeNetworkStatus, names};
use serde_json::json;

/// Time limit of a write. An API server may accept a request and not respond.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The status could not be written.
#[derive(Debug, thiserror::Error)]
pub enum StatusWriteError {
    /// The API server refused the request or could not be reached.
    #[error("write the status of NodeNetwork {0}")]
    Api(String, #[source] Box<kube::Error>),
    /// The API server accepted the request and did not respond in time.
    #[error("write the status of NodeNetwork {0}: no answer within {REQUEST_TIMEOUT:?}")]
    Timeout(String),
    /// The file could not be written.
    #[error("write {0}")]
    File(PathBuf, #[source] std::io::Error),
}

/// The destination of the status.
pub enum StatusSink {
    /// The API server, by server-side apply, so that the operator's condition stays.
    Api(Box<Api<NodeNetwork>>),
    /// A YAML file.
    File(PathBuf),
}

impl StatusSink {
    /// Writes to the API server.
    #[must_use]
    pub fn api(client: Client) -> Self {
        Self::Api(Box::new(Api::all(client)))
    }

    /// Writes `status.yaml` in `dir`.
    #[must_use]
    pub fn file(dir: &Path) -> Self {
        Self::File(dir.join("status.yaml"))
    }

    /// Writes the status of `node`.
    ///
    /// # Errors
    /// The write failed.
    pub async fn write(
        &self,
        node: &str,
        status: &NodeNetworkStatus,
    ) -> Result<(), StatusWriteError> {
        match self {
            Self::Api(api) => {
                let patch = json!({
                    "apiVersion": "netweft.io/v1alpha1",
                    "kind": "NodeNetwork",
                    "metadata": { "name": node },
                    "status": status,
                });
                let parameters = PatchParams::apply(names::AGENT_FIELD_MANAGER).force();
                let patch = Patch::Apply(patch);
                let request = api.patch_status(node, &parameters, &patch);
                match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
                    Ok(response) => response
                        .map(drop)
                        .map_err(|error| StatusWriteError::Api(node.to_owned(), Box::new(error))),
                    Err(_) => Err(StatusWriteError::Timeout(node.to_owned())),
                }
            }
            Self::File(path) => {
                let failed = |error| StatusWriteError::File(path.clone(), error);
                let yaml = serde_saphyr::to_string(status)
                    .map_err(|error| failed(std::io::Error::other(error)))?;
                let temporary = path.with_extension("new");
                std::fs::write(&temporary, yaml)
                    .and_then(|()| std::fs::rename(&temporary, path))
                    .map_err(failed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::Config;

    use super::*;

    /// The server accepts the connection and does not respond.
    #[tokio::test]
    async fn silent_api_server_times_out_status_write() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::try_from(Config::new(address.parse().unwrap())).unwrap();
        let status = NodeNetworkStatus::default();
        let write = tokio::time::timeout(REQUEST_TIMEOUT * 2, async {
            StatusSink::api(client).write("worker-1", &status).await
        });
        let error = write
            .await
            .expect("the write has a time limit")
            .unwrap_err();
        assert!(matches!(error, StatusWriteError::Timeout(_)), "{error}");
    }
}
