//! The record of one attached sandbox, and the directory of these records.
//!
//! ```text
//!   /run/netweft/lock                       held while addresses are allocated or released; contains the last one of each block
//!   /run/netweft/attachments/10.244.0.5     one record for each address,
//!   /run/netweft/attachments/fd00::5        in dual stack the same file under both addresses
//! ```
//!
//! A record is written to a temporary file, flushed, and linked to the name of its address. A record is therefore never
//! empty, and `link(2)` fails for an allocated address, also without the lock. Records never change, so no lock is needed
//! to read them.
//!
//! ADD also holds a lock on the record itself until the links of the pod are set up. The kernel releases this lock when the
//! process ends for any reason. The lock distinguishes an ADD in progress, however long it takes, from a killed one.

use netweft_common::atomic_file;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netweft_netstate::model::{LinkName, Mac};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::env::{AttachmentId, Pod};

/// The version of the format that this code writes. Fields can be added without a new one.
pub const VERSION: u32 = 1;

/// The name of a record before it has the names of its addresses; it is part of the name of the temporary file.
const NEW: &str = "new";

/// How one sandbox is attached: all data for restoring and removing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Version of the format.
    pub version: u32,
    /// Owner of the attachment.
    pub owner: AttachmentId,
    /// The pod, as far as the runtime passed it.
    pub pod: Pod,
    /// Path of the sandbox's network namespace.
    pub netns: String,
    /// Addresses, one of each family at most.
    pub addresses: Vec<PodAddress>,
    /// The host's end of the link.
    pub host_link: LinkName,
    /// Ethernet address of the host's end, which is that of the gateway.
    pub host_mac: Mac,
    /// Ethernet address of the pod's end.
    pub pod_mac: Mac,
    /// The bridge that the host's end is a port of; `None` for a routed pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
}

/// The agent's bridge at the time of ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Name of the bridge.
    pub link: LinkName,
    /// Ethernet address of the bridge.
    pub mac: Mac,
}

/// One address of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddress {
    /// The address.
    pub ip: IpAddr,
    /// The pool that the address is from.
    pub pool: String,
    /// On a bridge: the bridge's address in the block of this address, with the block's prefix length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpNet>,
}

/// The directory of attachments.
#[derive(Clone, Debug)]
pub struct Store {
    run_dir: PathBuf,
}

/// The lock on the record of an ADD in progress. It is released with this value, or when the process ends.
#[derive(Debug)]
#[must_use = "the ADD counts as complete when the lock is released"]
pub struct AddInProgress {
    _record: Flock<File>,
}

/// The directory with its lock held.
pub struct Locked<'a> {
    store: &'a Store,
    lock: Flock<File>,
}

impl Attachment {
    /// The pod if its runtime named it, else the container.
    #[must_use]
    pub fn display_name(&self) -> String {
        match (&self.pod.namespace, &self.pod.name) {
            (Some(namespace), Some(name)) => format!("pod {namespace}/{name}"),
            _ => format!("container {}", self.owner.container_id),
        }
    }
}

impl Store {
    /// The store in the directory shared by agent and plugin.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.run_dir.join("attachments")
    }

    /// The file that is locked while addresses are allocated or released.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.run_dir.join("lock")
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir().join(ip.to_string())
    }

    /// Acquires the lock, within `timeout`: the process that holds it may be stopped.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another process holds the lock for all this time, else the error of the file.
    pub fn lock(&self, timeout: Duration) -> io::Result<Locked<'_>> {
        let (dir, path) = (self.dir(), self.lock_file());
        fs::create_dir_all(&dir).map_err(with_path("create", &dir))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(with_path("open", &path))?;
        let deadline = Instant::now() + timeout;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Locked { store: self, lock }),
                Err((file, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file,
                Err((_, errno)) => return Err(errno.into()),
            };
            // A process holds the lock for well below a millisecond.
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The addresses that have a record, which are allocated. Needs no lock.
    ///
    /// # Errors
    /// When the directory cannot be read; one that does not exist is empty.
    pub fn allocated(&self) -> io::Result<BTreeSet<IpAddr>> {
        Ok(self
            .names()?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    /// All records by address, or the error of a record that cannot be read. Such a record stays, because its owner is
    /// unknown. Needs no lock.
    ///
    /// # Errors
    /// When the directory cannot be read; one that does not exist is empty.
    pub fn list(&self) -> io::Result<BTreeMap<IpAddr, io::Result<Attachment>>> {
        let mut records = BTreeMap::new();
        for ip in self.allocated()? {
            match self.read(ip) {
                // Released since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                record => drop(records.insert(ip, record)),
            }
        }
        Ok(records)
    }

    /// Whether an ADD for this address is in progress, so that the link and its routes may not exist yet. `false` for an
    /// address without a record.
    ///
    /// # Errors
    /// When the record cannot be opened or its lock cannot be tested.
    pub fn add_in_progress(&self, ip: IpAddr) -> io::Result<bool> {
        let file = match File::open(self.path(ip)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    fn read(&self, ip: IpAddr) -> io::Result<Attachment> {
        Ok(serde_json::from_slice(&fs::read(self.path(ip))?)?)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        match fs::read_dir(self.dir()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect(),
        }
    }
}

impl Locked<'_> {
    /// Stores the record under all its addresses, or under none. The ADD is in progress until the returned lock is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if one of the addresses is allocated, else the error of the file.
    pub fn reserve(&mut self, attachment: &Attachment) -> io::Result<AddInProgress> {
        self.remove_temporary_files();
        let (temporary, file) = atomic_file::write_temporary(
            &self.store.dir().join(NEW),
            &serde_json::to_vec(attachment)?,
        )?;
        let record = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| io::Error::from(errno))?;
        let mut linked = Vec::new();
        let mut result = Ok(());
        for address in &attachment.addresses {
            let path = self.store.path(address.ip);
            result = fs::hard_link(&temporary, &path);
            if result.is_err() {
                break;
            }
            linked.push(path);
        }
        if result.is_err() {
            linked.iter().for_each(|path| drop(fs::remove_file(path)));
        }
        // A failure is ignored: the records exist, and the next `reserve` removes the temporary file.
        drop(fs::remove_file(&temporary));
        result.map(|()| AddInProgress { _record: record })
    }

    /// Removes the records of `owner` under these addresses. Absent records and records of other owners are skipped.
    ///
    /// # Errors
    /// When a record cannot be removed.
    pub fn release(
        &mut self,
        owner: &AttachmentId,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> io::Result<()> {
        for ip in addresses {
            if self.store.read(ip).is_ok_and(|found| found.owner == *owner) {
                fs::remove_file(self.store.path(ip))?;
            }
        }
        Ok(())
    }

    /// The address that was allocated last, by block: the allocation cursors. They are stored in the lock file, to need
    /// no second file. Damaged cursors count as absent: allocation starts at the first address.
    #[must_use]
    pub fn cursors(&mut self) -> BTreeMap<IpNet, IpAddr> {
        let mut bytes = Vec::new();
        let read = self
            .lock
            .rewind()
            .and_then(|()| self.lock.read_to_end(&mut bytes));
        read.ok()
            .and_then(|_| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Stores the allocation cursors. A failure is ignored, because allocation works without them.
    pub fn store_cursors(&mut self, cursors: &BTreeMap<IpNet, IpAddr>) {
        let written = serde_json::to_vec(cursors)
            .map_err(io::Error::from)
            .and_then(|bytes| {
                self.lock.set_len(0)?;
                self.lock.rewind()?;
                self.lock.write_all(&bytes)
            });
        drop(written);
    }

    /// Removes the temporary files of killed processes: only the process that holds the lock writes here. Failures are
    /// ignored, because such a file is harmless.
    fn remove_temporary_files(&self) {
        for name in self.store.names().unwrap_or_default() {
            if atomic_file::is_temporary(NEW, &name) {
                drop(fs::remove_file(self.store.dir().join(name)));
            }
        }
    }
}

/// Adds the operation and the file to an error.
fn with_path(operation: &str, path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| {
        let text = format!("{operation} {}: {error}", path.display());
        io::Error::new(error.kind(), text)
    }
}

#[cfg(test)]
mod tests;
