//! Invalid objects, and objects with features that this version does not support.

use anyhow::ensure;

use crate::kind::checks::Cluster;
use crate::kind::kubectl::{apply, get, kubectl};

pub(crate) fn invalid_objects_are_refused_with_reason(_: &mut Cluster) -> anyhow::Result<()> {
    let pool = |name: &str, cidr: &str| {
        format!(
            "apiVersion: netweft.io/v1alpha1\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: {cidr}}}\n"
        )
    };
    let refused = [
        (pool("host-bits", "10.99.0.1/16"), "no host bits"),
        (pool("overlapping", "10.244.128.0/17"), "overlap"),
        (pool("small", "10.99.0.0/28"), "smaller than one block"),
    ];
    for (manifest, reason) in refused {
        let error = match apply(&manifest) {
            Ok(()) => anyhow::bail!("the API server accepted an invalid object:\n{manifest}"),
            Err(error) => error.to_string(),
        };
        ensure!(
            error.contains(reason),
            "the error does not contain {reason:?}: {error}"
        );
    }
    Ok(())
}

pub(crate) fn unsupported_network_mode_is_stalled_with_reason(
    _: &mut Cluster,
) -> anyhow::Result<()> {
    let name = "not-yet-supported";
    apply(&format!(
        "apiVersion: netweft.io/v1alpha1\nkind: NetworkMode\nmetadata: {{name: {name}}}\nspec: {{mode: host-gw, nodeAddress: {{interface: eth0}}}}\n"
    ))?;
    let stalled = kubectl(&[
        "wait",
        "networkmode",
        name,
        "--for=condition=Stalled",
        "--timeout=20s",
    ]);
    let object = get(&["networkmode", name])?;
    kubectl(&["delete", "networkmode", name])?;
    stalled?;
    let conditions = object
        .pointer("/status/conditions")
        .cloned()
        .unwrap_or_default();
    ensure!(
        conditions.to_string().contains("NotYetSupported"),
        "no condition has the reason NotYetSupported: {conditions}"
    );
    Ok(())
}
