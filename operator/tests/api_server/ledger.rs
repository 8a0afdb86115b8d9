//! [`Ledger`]: who owns which block, written down as it happens, and every breach of what must hold.
//!
//! The rules are [`Book`]'s, which is pure; here are the watches that fill it. Every event is looked at, not only what is there
//! in the end. Times are those at which an event arrived, by this process' monotonic clock.

mod reuse;
mod rules;
mod settled;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::StreamExt;
use kube::core::ClusterResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use netweft_crds::IPPool;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use rules::Book;
pub use words::{Change, Network, Rules};

use crate::objects::all;

/// What has been seen.
pub struct Ledger {
    book: Arc<Mutex<Book>>,
    _watches: JoinSet<()>,
}

impl Ledger {
    /// Begins to write down what happens in a cluster in which nothing is ever taken back; returns when what is there already has
    /// been.
    pub async fn begin(client: &Client) -> Self {
        Self::begin_by(client, Rules::default()).await
    }

    /// The same by other rules; what pools there are is found out.
    pub async fn begin_by(client: &Client, mut rules: Rules) -> Self {
        let pools = all::<IPPool>(client).await;
        rules.pools = pools
            .iter()
            .map(|pool| (pool.name_any(), pool.spec.cidr))
            .collect::<BTreeMap<_, _>>();
        let book = Arc::new(Mutex::new(Book::new(rules)));
        let ready = watch::Sender::new(0);
        let mut told = ready.subscribe();
        let mut watches = JoinSet::new();
        watches.spawn(follow(
            client.clone(),
            book.clone(),
            ready.clone(),
            Book::subnet,
        ));
        watches.spawn(follow(client.clone(), book.clone(), ready, Book::network));
        told.wait_for(|ready| *ready == 2).await.unwrap();
        Self {
            book,
            _watches: watches,
        }
    }

    /// What must not have happened, and what must not be: a node that hands out from another's block.
    pub fn breaches(&self) -> Vec<String> {
        self.with(|book| {
            let breaches = book.breaches().iter().cloned();
            breaches.chain(book.foreign()).collect()
        })
    }

    /// How many blocks were ever owned.
    pub fn blocks(&self) -> usize {
        self.with(|book| book.given())
    }

    /// Reads the book, or tells it what no watch can.
    pub fn with<T>(&self, act: impl FnOnce(&mut Book) -> T) -> T {
        act(&mut self.book.lock().unwrap())
    }
}

async fn follow<K>(
    client: Client,
    book: Arc<Mutex<Book>>,
    ready: watch::Sender<i32>,
    note: fn(&mut Book, &Change<'_, K>, Instant),
) where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    K: Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events =
        watcher::watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut complete = false;
    while let Some(event) = events.next().await {
        let at = Instant::now();
        let mut book = book.lock().unwrap();
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                note(&mut book, &Change::Is(&object), at);
            }
            Ok(Event::Delete(object)) => note(&mut book, &Change::Gone(&object), at),
            Ok(Event::InitDone) => {
                complete = true;
                ready.send_modify(|ready| *ready += 1);
            }
            // A watch that breaks goes on where it was; one that begins anew has not seen what was between.
            Ok(Event::Init) if complete => book.blind(&K::kind(&())),
            Ok(Event::Init) => {}
            Err(error) => println!("the ledger's watch is tried again: {error}"),
        }
    }
}
