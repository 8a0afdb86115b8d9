//! The record of one attached sandbox, and the directory of these records.
//!
//! ```text
//!   /run/netweft/lock                       held while addresses are chosen or given back; remembers the last per block
//!   /run/netweft/attachments/10.244.0.5     one record per address,
//!   /run/netweft/attachments/fd00::5        the same file under both in dual stack
//! ```
//!
//! A record is written aside, flushed and linked under its address: it is never empty, and `link(2)` fails for an address
//! that is taken, lock or no lock. Records are never changed, so they can be read without the lock.
//!
//! Whoever reserves an address also holds a lock on the record itself until its pod is wired. The kernel lets go of it when
//! the process ends in whatever way, so others know an ADD that is under way, however long it takes, from a dead one.

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

/// What a record is called until it has all its names.
const NEW: &str = "new";

/// How one sandbox is attached. Everything that is needed to make it again or to take it away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Version of the format.
    pub version: u32,
    /// Whose it is.
    pub owner: AttachmentId,
    /// The pod, as far as known.
    pub pod: Pod,
    /// Path of the sandbox's network namespace.
    pub netns: String,
    /// Addresses, one of each family at most.
    pub addresses: Vec<PodAddress>,
    /// The host's end of the link.
    pub host_link: LinkName,
    /// Ethernet address of the host's end, the gateway's.
    pub host_mac: Mac,
    /// Ethernet address of the pod's end.
    pub pod_mac: Mac,
    /// The bridge that the host's end is a port of; `None` for a routed pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
}

/// The agent's bridge, as it was when the pod was attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Its name.
    pub link: LinkName,
    /// Its Ethernet address.
    pub mac: Mac,
}

/// One address of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddress {
    /// The address.
    pub ip: IpAddr,
    /// The pool it is from.
    pub pool: String,
    /// On a bridge: the bridge's address in the block of this one, with the block's prefix length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpNet>,
}

/// The directory of attachments.
#[derive(Clone, Debug)]
pub struct Store {
    run_dir: PathBuf,
}

/// The lock on a record whose pod is being wired. It ends with this value, or with the process.
#[derive(Debug)]
#[must_use = "without it the pod counts as wired"]
pub struct UnderWay {
    _record: Flock<File>,
}

/// The directory while nobody else changes it.
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

    /// Waits for the lock, `patience` at most: its holder may be stopped.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if somebody else kept it, else why it cannot be had.
    pub fn lock(&self, patience: Duration) -> io::Result<Locked<'_>> {
        let (dir, path) = (self.dir(), self.lock_file());
        fs::create_dir_all(&dir).map_err(of_file("create", &dir))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(of_file("open", &path))?;
        let until = Instant::now() + patience;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Locked { store: self, lock }),
                Err((file, Errno::EWOULDBLOCK)) if Instant::now() < until => file,
                Err((_, errno)) => return Err(errno.into()),
            };
            // Holders need well below a millisecond.
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The addresses that have a record. Needs no lock.
    ///
    /// # Errors
    /// When the directory cannot be read; one that does not exist is empty.
    pub fn taken(&self) -> io::Result<BTreeSet<IpAddr>> {
        Ok(self
            .names()?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    /// All records by address. One that does not parse comes with its error: whose it is is not known, so it stays. Needs
    /// no lock.
    ///
    /// # Errors
    /// When the directory cannot be read; one that does not exist is empty.
    pub fn list(&self) -> io::Result<BTreeMap<IpAddr, io::Result<Attachment>>> {
        let mut records = BTreeMap::new();
        for ip in self.taken()? {
            match self.read(ip) {
                // Released meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                record => drop(records.insert(ip, record)),
            }
        }
        Ok(records)
    }

    /// Whether an ADD holds the record of this address, so that its link and all that is on it may still be missing. An
    /// address without a record is not under way.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn is_under_way(&self, ip: IpAddr) -> io::Result<bool> {
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
    /// Puts a record under all its addresses, or under none. It is under way as long as the answer lives.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if one of them is taken, else why it cannot be written.
    pub fn reserve(&mut self, attachment: &Attachment) -> io::Result<UnderWay> {
        self.sweep_aside();
        let (aside, file) = atomic_file::write_aside(
            &self.store.dir().join(NEW),
            &serde_json::to_vec(attachment)?,
        )?;
        let record = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| io::Error::from(errno))?;
        let mut done = Vec::new();
        let mut result = Ok(());
        for address in &attachment.addresses {
            let path = self.store.path(address.ip);
            result = fs::hard_link(&aside, &path);
            if result.is_err() {
                break;
            }
            done.push(path);
        }
        if result.is_err() {
            done.iter().for_each(|path| drop(fs::remove_file(path)));
        }
        // What stays of it is swept with the next lock. The records stand, so the answer must be that they do.
        drop(fs::remove_file(&aside));
        result.map(|()| UnderWay { _record: record })
    }

    /// Removes the records of `owner` under these addresses; absent is fine, and somebody else's stay.
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

    /// The address handed out last, by block. A hint kept in the lock file itself, so that it costs no file of its own;
    /// damage to it means starting from the front.
    #[must_use]
    pub fn last(&mut self) -> BTreeMap<IpNet, IpAddr> {
        let mut bytes = Vec::new();
        let read = self
            .lock
            .rewind()
            .and_then(|()| self.lock.read_to_end(&mut bytes));
        read.ok()
            .and_then(|_| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Remembers the addresses handed out last. A failure costs nothing but the hint.
    pub fn remember(&mut self, last: &BTreeMap<IpNet, IpAddr>) {
        let written = serde_json::to_vec(last)
            .map_err(io::Error::from)
            .and_then(|bytes| {
                self.lock.set_len(0)?;
                self.lock.rewind()?;
                self.lock.write_all(&bytes)
            });
        drop(written);
    }

    /// Removes what a killed writer left: only holders of the lock write here. What cannot be removed is in nobody's way.
    fn sweep_aside(&self) {
        for name in self.store.names().unwrap_or_default() {
            if atomic_file::is_aside(NEW, &name) {
                drop(fs::remove_file(self.store.dir().join(name)));
            }
        }
    }
}

/// Puts the file into an error's words.
fn of_file(tried: &str, path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{tried} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
