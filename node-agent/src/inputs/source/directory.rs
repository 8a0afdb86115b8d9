//! Objects from a directory of YAML files: for the lab and for experiments.
//!
//! Objects of a single node may be in a subdirectory with the name of the node.
//!
//! A file is changed by renaming another file over it, so that no reader sees a part of it. That changes the modification time of the
//! directory, which is polled a few times a second.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use netweft_crds::{IPPool, NodeNetwork, NodeSubnet};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use crate::inputs::Objects;
use crate::inputs::source::TaskGuard;
use crate::status::cause::Cause;
use crate::status::problem::Problem;
use crate::telemetry::failure_log::FailureLog;

const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// A modification time that is younger than this may be that of a later change, too: timestamps of older kernels have a
/// granularity of up to 10 ms.
const TIMESTAMP_GRANULARITY: Duration = Duration::from_millis(20);

/// A polled directory.
pub struct Directory {
    changes: watch::Receiver<u64>,
    objects: watch::Receiver<Option<Objects>>,
    ended: Option<UnboundedReceiver<String>>,
}

impl Directory {
    /// Starts polling. It ends with the process.
    pub fn start(dir: &Path, node: &str) -> Self {
        let (signal, changes) = watch::channel(0u64);
        let (sender, objects) = watch::channel(None);
        let mut reader = Reader::new(dir, node);
        let (ended_sender, ended) = unbounded_channel();
        tokio::spawn(async move {
            let _guard = TaskGuard {
                watched: format!("the directory {}", reader.dir.display()),
                ended: ended_sender,
            };
            let mut failure_log = FailureLog::default();
            while !sender.is_closed() {
                let changed = reader.changed_objects();
                let dir = reader.dir.display();
                let failure = |error| format!("read the directory of objects {dir}: {error}");
                failure_log.set(changed.as_ref().err().map(failure));
                if let Ok(Some(objects)) = changed
                    && sender.borrow().as_ref() != Some(&objects)
                {
                    sender.send_replace(Some(objects));
                    signal.send_modify(|version| *version = version.wrapping_add(1));
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        });
        Self {
            changes,
            objects,
            ended: Some(ended),
        }
    }

    pub fn ended_tasks(&mut self) -> UnboundedReceiver<String> {
        self.ended.take().unwrap_or_else(|| unbounded_channel().1)
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    pub fn snapshot(&self) -> Option<Objects> {
        self.objects.borrow().clone()
    }
}

/// The state of the directory at the last reading.
struct Reader {
    dir: PathBuf,
    node: String,
    /// Modification times of the directory and of the node's subdirectory, if no later change can have the same times.
    read_at: Option<[Option<SystemTime>; 2]>,
    files: BTreeMap<PathBuf, (Version, Result<Object, serde_saphyr::Error>)>,
}

/// Inode and modification time, which differ for another file with the same name.
type Version = (u64, Option<SystemTime>);

/// The object in a file.
enum Object {
    Pool(IPPool),
    Subnet(NodeSubnet),
    Network(Box<NodeNetwork>),
    Namespace(PartialObjectMeta<Namespace>),
    /// An object that the agent does not use.
    Other,
}

impl Reader {
    fn new(dir: &Path, node: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            node: node.to_owned(),
            read_at: None,
            files: BTreeMap::new(),
        }
    }

    /// The objects; `None` if the directories are unchanged.
    fn changed_objects(&mut self) -> io::Result<Option<Objects>> {
        let own = self.dir.join(&self.node);
        let own = fs::metadata(own).and_then(|own| own.modified());
        let modified = [Some(fs::metadata(&self.dir)?.modified()?), own.ok()];
        if self.read_at == Some(modified) {
            return Ok(None);
        }
        let age = |time: &SystemTime| time.elapsed().unwrap_or_default();
        let mut times = modified.iter().flatten();
        let are_final = times.all(|time| age(time) > TIMESTAMP_GRANULARITY);
        self.read()?;
        self.read_at = are_final.then_some(modified);
        Ok(Some(self.objects()))
    }

    /// Reads the new and changed `*.yaml` files of both directories. Each contains one object.
    fn read(&mut self) -> io::Result<()> {
        let mut found = yaml_files(&self.dir)?;
        match yaml_files(&self.dir.join(&self.node)) {
            Ok(own) => found.extend(own),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.files.retain(|file, _| found.contains_key(file));
        for (file, metadata) in found {
            let version = (metadata.ino(), metadata.modified().ok());
            let previous = self.files.get(&file);
            if previous.is_none_or(|(previous, _)| *previous != version) {
                let text = fs::read_to_string(&file)?;
                self.files.insert(file, (version, parse(&text)));
            }
        }
        Ok(())
    }

    /// The objects of this agent.
    fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        for (file, (_, object)) in &self.files {
            match object {
                Ok(Object::Pool(pool)) => objects.pools.push(pool.clone()),
                Ok(Object::Subnet(subnet)) => objects.subnets.push(subnet.clone()),
                Ok(Object::Network(network)) if network.name_any() == self.node => {
                    objects.network = Some(NodeNetwork::clone(network));
                }
                Ok(Object::Namespace(PartialObjectMeta { metadata, .. })) => {
                    let labels = metadata.labels.clone().unwrap_or_default();
                    let name = metadata.name.clone().map(|name| (name, labels));
                    objects.namespaces.extend(name);
                }
                Ok(Object::Network(_) | Object::Other) => {}
                Err(error) => {
                    let cause = Cause::FileUnreadable {
                        file: file.clone(),
                        error: error.to_string(),
                    };
                    objects.unreadable.push(Problem::from(cause));
                }
            }
        }
        objects
    }
}

fn yaml_files(dir: &Path) -> io::Result<BTreeMap<PathBuf, Metadata>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            let metadata = fs::metadata(&path)?;
            files.insert(path, metadata);
        }
    }
    Ok(files)
}

fn parse(text: &str) -> Result<Object, serde_saphyr::Error> {
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
    }
    fn of<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
        serde_saphyr::from_str(text)
    }
    Ok(match of::<Kind>(text)?.kind.as_str() {
        "IPPool" => Object::Pool(of(text)?),
        "NodeSubnet" => Object::Subnet(of(text)?),
        "NodeNetwork" => Object::Network(Box::new(of(text)?)),
        "Namespace" => Object::Namespace(of(text)?),
        _ => Object::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::problem::ProblemKind;

    #[test]
    fn invalid_object_file_is_reported_others_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let pool = "apiVersion: netweft.io/v1alpha1\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.244.0.0/16}\n";
        fs::write(folder.path().join("a.yaml"), pool).unwrap();
        fs::write(
            folder.path().join("b.yaml"),
            pool.replace("10.244", "10.444"),
        )
        .unwrap();
        fs::write(folder.path().join("c.txt"), "not an object").unwrap();
        let objects = Reader::new(folder.path(), "n")
            .changed_objects()
            .unwrap()
            .unwrap();
        assert_eq!(objects.pools.len(), 1);
        let unreadable = objects.unreadable.messages(ProblemKind::Invalid);
        assert_eq!(unreadable.len(), 1);
        assert!(unreadable[0].contains("b.yaml"));
    }

    #[test]
    fn object_directory_is_reread_only_after_change() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut reader = Reader::new(folder, "n");
        let mut read = || reader.changed_objects().unwrap();
        // The directory is read again until its modification time is old enough.
        let is_unchanged = (0..100).any(|_| {
            std::thread::sleep(TIMESTAMP_GRANULARITY);
            read().is_none()
        });
        assert!(is_unchanged, "an unchanged directory is read again");
        let pool = "apiVersion: netweft.io/v1alpha1\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.244.0.0/16}\n";
        fs::write(folder.join("p.new"), pool).unwrap();
        fs::rename(folder.join("p.new"), folder.join("p.yaml")).unwrap();
        assert_eq!(read().unwrap().pools.len(), 1);
        fs::write(folder.join("p.new"), pool.replace("244", "245")).unwrap();
        fs::rename(folder.join("p.new"), folder.join("p.yaml")).unwrap();
        assert!(
            read().unwrap().pools[0]
                .spec
                .cidr
                .to_string()
                .contains("245")
        );
        fs::create_dir(folder.join("n")).unwrap();
        fs::write(folder.join("n/q.yaml"), pool.replace("p}", "q}")).unwrap();
        assert_eq!(read().unwrap().pools.len(), 2);
        fs::create_dir(folder.join("other")).unwrap();
        fs::write(folder.join("other/r.yaml"), pool.replace("p}", "r}")).unwrap();
        assert_eq!(read().unwrap().pools.len(), 2);
    }

    #[test]
    fn node_network_of_other_node_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["n", "other"] {
            let network = format!(
                "apiVersion: netweft.io/v1alpha1\nkind: NodeNetwork\nmetadata: {{name: {name}}}\nspec: {{}}\n"
            );
            fs::write(folder.path().join(format!("{name}.yaml")), network).unwrap();
        }
        let objects = Reader::new(folder.path(), "n")
            .changed_objects()
            .unwrap()
            .unwrap();
        assert_eq!(objects.network.unwrap().name_any(), "n");
    }
}
