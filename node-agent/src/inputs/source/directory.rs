//! Objects from a folder of YAML files: for the namespace lab and for trying things out.
//!
//! What is for one node alone may be in a folder of its name below.
//!
//! A file is changed by renaming another over it, so that nobody reads half of one. That changes the folder itself, and
//! folders are all that is looked at, a few times a second.

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
use crate::inputs::source::Ending;
use crate::status::cause::Cause;
use crate::status::problem::Problem;
use crate::telemetry::failure_log::FailureLog;

const INTERVAL: Duration = Duration::from_millis(200);
/// A change that is younger may not be the last of its time stamp: older kernels count in ticks of up to 10 ms.
const SETTLED: Duration = Duration::from_millis(20);

/// A folder that is looked at again and again.
pub struct Folder {
    changes: watch::Receiver<u64>,
    objects: watch::Receiver<Option<Objects>>,
    ends: Option<UnboundedReceiver<String>>,
}

impl Folder {
    /// Start looking; it ends with the process.
    pub fn start(folder: &Path, node: &str) -> Self {
        let (signal, changes) = watch::channel(0u64);
        let (sender, objects) = watch::channel(None);
        let mut reader = Reader::new(folder, node);
        let (ends, ended) = unbounded_channel();
        tokio::spawn(async move {
            let what = format!("the folder {}", reader.folder.display());
            let _ending = Ending { what, ends };
            let mut failure_log = FailureLog::default();
            while !sender.is_closed() {
                let changed = reader.changed_objects();
                let folder = reader.folder.display();
                let unread = |error| format!("read the folder of objects {folder}: {error}");
                failure_log.are(changed.as_ref().err().map(unread));
                if let Ok(Some(objects)) = changed
                    && sender.borrow().as_ref() != Some(&objects)
                {
                    sender.send_replace(Some(objects));
                    signal.send_modify(|version| *version = version.wrapping_add(1));
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self {
            changes,
            objects,
            ends: Some(ended),
        }
    }

    pub fn ends(&mut self) -> UnboundedReceiver<String> {
        self.ends.take().unwrap_or_else(|| unbounded_channel().1)
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    pub fn snapshot(&self) -> Option<Objects> {
        self.objects.borrow().clone()
    }
}

/// What was read of a folder until now.
struct Reader {
    folder: PathBuf,
    node: String,
    /// Times of the last changes of the folder and of the node's own, once nothing more can come under the same times.
    known: Option<[Option<SystemTime>; 2]>,
    files: BTreeMap<PathBuf, (Version, Result<Object, serde_saphyr::Error>)>,
}

/// Inode and time of the last change: another file under the same name has others.
type Version = (u64, Option<SystemTime>);

/// What is in a file.
enum Object {
    Pool(IPPool),
    Subnet(NodeSubnet),
    Network(Box<NodeNetwork>),
    Namespace(PartialObjectMeta<Namespace>),
    /// Nothing for an agent.
    Other,
}

impl Reader {
    fn new(folder: &Path, node: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            node: node.to_owned(),
            known: None,
            files: BTreeMap::new(),
        }
    }

    /// The objects, unless the folders are as they were.
    fn changed_objects(&mut self) -> io::Result<Option<Objects>> {
        let own = self.folder.join(&self.node);
        let own = fs::metadata(own).and_then(|own| own.modified());
        let changed = [Some(fs::metadata(&self.folder)?.modified()?), own.ok()];
        if self.known == Some(changed) {
            return Ok(None);
        }
        let age = |time: &SystemTime| time.elapsed().unwrap_or_default();
        let settled = changed.iter().flatten().all(|time| age(time) > SETTLED);
        self.read()?;
        self.known = settled.then_some(changed);
        Ok(Some(self.objects()))
    }

    /// Read all `*.yaml` of both folders that were not read yet, one object in each.
    fn read(&mut self) -> io::Result<()> {
        let mut found = yaml(&self.folder)?;
        match yaml(&self.folder.join(&self.node)) {
            Ok(own) => found.extend(own),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.files.retain(|file, _| found.contains_key(file));
        for (file, metadata) in found {
            let version = (metadata.ino(), metadata.modified().ok());
            let known = self.files.get(&file);
            if known.is_none_or(|(known, _)| *known != version) {
                let text = fs::read_to_string(&file)?;
                self.files.insert(file, (version, parse(&text)));
            }
        }
        Ok(())
    }

    /// What there is for this agent.
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

fn yaml(folder: &Path) -> io::Result<BTreeMap<PathBuf, Metadata>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
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
        let mut observe = || reader.changed_objects().unwrap();
        // Until the change is old enough to be the last of its time.
        let settled = (0..100).any(|_| {
            std::thread::sleep(SETTLED);
            observe().is_none()
        });
        assert!(settled, "it is read again and again");
        let pool = "apiVersion: netweft.io/v1alpha1\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.244.0.0/16}\n";
        fs::write(folder.join("p.new"), pool).unwrap();
        fs::rename(folder.join("p.new"), folder.join("p.yaml")).unwrap();
        assert_eq!(observe().unwrap().pools.len(), 1);
        fs::write(folder.join("p.new"), pool.replace("244", "245")).unwrap();
        fs::rename(folder.join("p.new"), folder.join("p.yaml")).unwrap();
        assert!(
            observe().unwrap().pools[0]
                .spec
                .cidr
                .to_string()
                .contains("245")
        );
        fs::create_dir(folder.join("n")).unwrap();
        fs::write(folder.join("n/q.yaml"), pool.replace("p}", "q}")).unwrap();
        assert_eq!(observe().unwrap().pools.len(), 2);
        fs::create_dir(folder.join("other")).unwrap();
        fs::write(folder.join("other/r.yaml"), pool.replace("p}", "r}")).unwrap();
        assert_eq!(observe().unwrap().pools.len(), 2);
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
