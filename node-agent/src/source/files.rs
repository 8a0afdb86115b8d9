//! Objects from a folder of YAML files, looked at a few times a second: for the namespace lab and for trying things out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use netweft_crds::{IPPool, NodeNetwork, NodeSubnet};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::warn;

use crate::inputs::Objects;

const INTERVAL: Duration = Duration::from_millis(200);

/// A folder that is looked at again and again.
pub struct Folder {
    changes: watch::Receiver<u64>,
    objects: watch::Receiver<Option<Objects>>,
}

impl Folder {
    /// Start looking; it ends with the process.
    pub fn start(folder: &Path, node: &str) -> Self {
        let (signal, changes) = watch::channel(0u64);
        let (sender, objects) = watch::channel(None);
        let (folder, node) = (folder.to_owned(), node.to_owned());
        tokio::spawn(async move {
            while !sender.is_closed() {
                let read = read(&folder, &node);
                if let Err(error) = &read {
                    warn!(folder = %folder.display(), %error, "cannot read the folder of objects, will retry");
                }
                if let Ok(objects) = read
                    && sender.borrow().as_ref() != Some(&objects)
                {
                    sender.send_replace(Some(objects));
                    signal.send_modify(|version| *version = version.wrapping_add(1));
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self { changes, objects }
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    pub fn snapshot(&self) -> Option<Objects> {
        self.objects.borrow().clone()
    }
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
}

/// Read all `*.yaml` of the folder, one object in each; what is not for this agent is passed over.
fn read(folder: &Path, node: &str) -> io::Result<Objects> {
    let mut objects = Objects::default();
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|ending| ending == "yaml"));
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file)?;
        if let Err(error) = add(&mut objects, &text, node) {
            objects
                .unreadable
                .push(format!("{} cannot be read: {error}", file.display()));
        }
    }
    Ok(objects)
}

fn add(objects: &mut Objects, text: &str, node: &str) -> Result<(), serde_saphyr::Error> {
    match parse::<Kind>(text)?.kind.as_str() {
        "IPPool" => objects.pools.push(parse::<IPPool>(text)?),
        "NodeSubnet" => objects.subnets.push(parse::<NodeSubnet>(text)?),
        "Namespace" => {
            let PartialObjectMeta { metadata, .. } = parse::<PartialObjectMeta<Namespace>>(text)?;
            let labels = metadata.labels.unwrap_or_default();
            let name = metadata.name.map(|name| (name, labels));
            objects.namespaces.extend(name);
        }
        "NodeNetwork" => {
            let network = parse::<NodeNetwork>(text)?;
            if network.name_any() == node {
                objects.network = Some(network);
            }
        }
        _ => {}
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    serde_saphyr::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_file_is_named_and_the_others_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let pool = "apiVersion: netweft.io/v1alpha1\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.244.0.0/16}\n";
        fs::write(folder.path().join("a.yaml"), pool).unwrap();
        fs::write(
            folder.path().join("b.yaml"),
            pool.replace("10.244", "10.444"),
        )
        .unwrap();
        fs::write(folder.path().join("c.txt"), "not an object").unwrap();
        let objects = read(folder.path(), "n").unwrap();
        assert_eq!(objects.pools.len(), 1);
        assert_eq!(objects.unreadable.len(), 1);
        assert!(objects.unreadable[0].contains("b.yaml"));
    }

    #[test]
    fn only_the_nodes_own_network_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["n", "other"] {
            let network = format!(
                "apiVersion: netweft.io/v1alpha1\nkind: NodeNetwork\nmetadata: {{name: {name}}}\nspec: {{}}\n"
            );
            fs::write(folder.path().join(format!("{name}.yaml")), network).unwrap();
        }
        assert_eq!(
            read(folder.path(), "n")
                .unwrap()
                .network
                .unwrap()
                .name_any(),
            "n"
        );
    }
}
