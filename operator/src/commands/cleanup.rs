//! `netweft-operator clean`: removes the objects of operators that would block or outlive an uninstallation.
//!
//! Users' objects stay. NodeSubnets and NodeNetworks stay, too: they are deleted with the CRDs, or a new installation
//! uses them.

use anyhow::Context;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt};
use netweft_crds::IPPool;
use netweft_crds::names::{PASSWORDS_SECRET, POOL_FINALIZER};
use tracing::info;

use crate::commands::args::Args;
use crate::controller::api_request::request;
use crate::controller::api_request_error::{Cause, Class, RequestError};
use crate::controller::apply::set_finalizers;
use crate::leader_election;
use crate::plan::model::cluster_state::FinalizerChange;

/// Cleans up when no operator is the leader.
///
/// # Errors
/// The API server cannot be reached or refuses a request.
pub async fn clean(args: Args) -> anyhow::Result<()> {
    let client = netweft_client::connect(args.api_server.as_deref()).await?;
    let mut candidate = leader_election::start(&client, &args);
    info!(
        lease = args.lease_name,
        "waiting until no operator is the leader"
    );
    let acquired = candidate
        .is_leader
        .wait_for(|is_leader| *is_leader)
        .await
        .map(drop);
    acquired.context("the leader election ended")?;
    while !remove_finalizers(&client).await? {}
    candidate.release().await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), &args.namespace);
    delete("Lease", &args.lease_name, leases).await?;
    let secrets: Api<Secret> = Api::namespaced(client, &args.namespace);
    delete("Secret", PASSWORDS_SECRET, secrets).await
}

/// Removes netweft's finalizer from all pools. Returns false if a pool has changed in the meantime.
async fn remove_finalizers(client: &Client) -> anyhow::Result<bool> {
    let api: Api<IPPool> = Api::all(client.clone());
    let pools = request("list", "IPPool", "all", api.list(&ListParams::default())).await;
    let pools = match pools {
        Ok(pools) => pools,
        // The CRD is deleted, and with it all pools.
        Err(error) if is_absent(&error) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let mut complete = true;
    for pool in pools {
        let name = pool.name_any();
        let mut finalizers = pool.finalizers().to_vec();
        finalizers.retain(|finalizer| finalizer != POOL_FINALIZER);
        if finalizers.len() == pool.finalizers().len() {
            continue;
        }
        let change = FinalizerChange {
            uid: pool.uid(),
            resource_version: pool.resource_version(),
            name: name.clone(),
            finalizers,
        };
        let sent = set_finalizers(client, &change);
        match request("finalize", "IPPool", &name, sent).await {
            Ok(()) => info!(pool = name, "removed finalizer"),
            Err(error) if error.class() == Class::Stale => {
                complete = false;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(complete)
}

async fn delete<K>(kind: &'static str, name: &str, api: Api<K>) -> anyhow::Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let params = DeleteParams::default();
    let deleted = api.delete(name, &params);
    match request("delete", kind, name, deleted).await {
        Ok(_) => info!(kind, name, "deleted object"),
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn is_absent(error: &RequestError) -> bool {
    matches!(&error.source, Cause::Api(kube::Error::Api(status)) if status.code == 404)
}
