//! Publishing the status: to the API server, or into a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use netweft_crds::{NodeNetwork, NodeNetworkStatus, names};
use serde_json::json;

/// How long an answer may take. Publishing is part of the loop that programs the kernel, which must not wait for an API
/// server that has taken a request and does not answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The status could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The API server refused it or did not answer.
    #[error("write the status of NodeNetwork {0}")]
    Api(String, #[source] Box<kube::Error>),
    /// The API server took the request and did not answer in time.
    #[error("write the status of NodeNetwork {0}: no answer within {REQUEST_TIMEOUT:?}")]
    Slow(String),
    /// The file could not be written.
    #[error("write {0}")]
    File(PathBuf, #[source] std::io::Error),
}

/// Where the status goes.
pub enum StatusSink {
    /// To the API server, by server-side apply: the operator's condition stays.
    Api(Box<Api<NodeNetwork>>),
    /// Into a file, as YAML.
    File(PathBuf),
}

impl StatusSink {
    /// Tell the API server.
    #[must_use]
    pub fn api(client: Client) -> Self {
        Self::Api(Box::new(Api::all(client)))
    }

    /// Write `status.yaml` into `folder`.
    #[must_use]
    pub fn file(folder: &Path) -> Self {
        Self::File(folder.join("status.yaml"))
    }

    /// Tell the status of `node`.
    ///
    /// # Errors
    /// The write failed; nothing else is affected.
    pub async fn write(&self, node: &str, status: &NodeNetworkStatus) -> Result<(), ReportError> {
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
                let telling = api.patch_status(node, &parameters, &patch);
                match tokio::time::timeout(REQUEST_TIMEOUT, telling).await {
                    Ok(told) => told
                        .map(drop)
                        .map_err(|error| ReportError::Api(node.to_owned(), Box::new(error))),
                    Err(_) => Err(ReportError::Slow(node.to_owned())),
                }
            }
            Self::File(path) => {
                let failed = |error| ReportError::File(path.clone(), error);
                let yaml = serde_saphyr::to_string(status)
                    .map_err(|error| failed(std::io::Error::other(error)))?;
                let aside = path.with_extension("new");
                std::fs::write(&aside, yaml)
                    .and_then(|()| std::fs::rename(&aside, path))
                    .map_err(failed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::Config;

    use super::*;

    /// The server accepts the connection and does not reply: the loop that programs the kernel goes on.
    #[tokio::test]
    async fn silent_api_server_times_out_status_write() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::try_from(Config::new(address.parse().unwrap())).unwrap();
        let status = NodeNetworkStatus::default();
        let told = tokio::time::timeout(REQUEST_TIMEOUT * 2, async {
            StatusSink::api(client).write("worker-1", &status).await
        });
        let refusal = told.await.expect("it gives up by itself").unwrap_err();
        assert!(matches!(refusal, ReportError::Slow(_)), "{refusal}");
    }
}
