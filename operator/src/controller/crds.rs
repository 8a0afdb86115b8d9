//! Applies the CRDs of this version at start, so an upgrade of the operator is an upgrade of the CRDs.
//!
//! Server-side apply with force: helm installs the CRDs of `crds/` once and never updates them.

use std::time::Duration;

use futures::future;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use netweft_client::backoff;
use netweft_crds::names::OPERATOR_FIELD_MANAGER;
use tracing::{info, warn};

use crate::controller::api_request::request;
use crate::controller::api_request_error::RequestError;

/// First and longest delay between attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Applies all CRDs, and retries until the API server has accepted them.
pub async fn apply_until_done(client: &Client) {
    let mut delays = backoff::exponential(RETRY.0, RETRY.1);
    loop {
        match apply(client).await {
            Ok(()) => return info!("applied CRDs"),
            Err(error) => warn!(error = error.chain(), "applying CRDs failed, will retry"),
        }
        tokio::time::sleep(delays.next().unwrap_or(RETRY.1)).await;
    }
}

async fn apply(client: &Client) -> Result<(), RequestError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply(OPERATOR_FIELD_MANAGER).force();
    let definitions = netweft_crds::definitions();
    let requests = definitions.iter().map(|definition| {
        let (api, params, name) = (&api, &params, definition.name_any());
        async move {
            let patch = Patch::Apply(definition);
            let sent = api.patch(&name, params, &patch);
            request("apply", "CustomResourceDefinition", &name, sent).await
        }
    });
    future::try_join_all(requests).await.map(|_| ())
}
