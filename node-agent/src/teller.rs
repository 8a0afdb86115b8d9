//! Telling the status beside the loop that programs the kernel, which must not wait for whoever is told.
//!
//! ```text
//!   Reconciler ──want──▶ the newest status ──news? rested?──▶ Reporter
//! ```

use std::time::Duration;

use netweft_crds::NodeNetworkStatus;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::report::Reporter;
use crate::retry::Retry;
use crate::status::{same, same_but_for_bursts};
use crate::words::chain;

/// How long a status rests after it was told, if only what comes in bursts is news (BGP sessions, what others do to the
/// kernel): while hundreds of them come, not each is a write.
const REST: Duration = Duration::from_secs(5);

/// A status to tell.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wanted {
    /// Of which object: a Node that is deleted and comes back has a new one.
    uid: Option<String>,
    /// What is to be told; none before the first sync.
    status: Option<NodeNetworkStatus>,
    /// What the API server was last seen to have.
    seen: Option<NodeNetworkStatus>,
    /// How often what was told has been doubted.
    doubts: u64,
}

/// Where the reconciler puts what is to be told.
pub struct Telling {
    wanted: watch::Sender<Wanted>,
}

impl Telling {
    /// The status that stands for an object: the one wanted last, else the one that the API server has.
    pub fn known(
        &self,
        uid: Option<&str>,
        seen: Option<&NodeNetworkStatus>,
    ) -> Option<NodeNetworkStatus> {
        let wanted = self.wanted.borrow();
        let ours = wanted
            .status
            .as_ref()
            .filter(|_| wanted.uid.as_deref() == uid);
        ours.or(seen).cloned()
    }

    /// From now on this is to be told.
    pub fn want(
        &self,
        uid: Option<&str>,
        seen: Option<&NodeNetworkStatus>,
        status: NodeNetworkStatus,
    ) {
        self.wanted.send_if_modified(|wanted| {
            let new = Wanted {
                uid: uid.map(str::to_owned),
                status: Some(status),
                seen: seen.cloned(),
                doubts: wanted.doubts,
            };
            let news = *wanted != new;
            *wanted = new;
            news
        });
    }

    /// Doubt what was told, so that a status which somebody else has changed is told again, and counts are brought up to
    /// date.
    pub fn doubt(&self) {
        self.wanted.send_modify(|wanted| wanted.doubts += 1);
    }
}

/// What is told, and to whom.
pub struct Teller {
    node: String,
    reporter: Reporter,
    wanted: watch::Receiver<Wanted>,
    told: Option<(Wanted, Instant)>,
    retry: Retry,
}

impl Teller {
    /// One for `node`, who has told nothing yet, and where to put what is to be told.
    pub fn new(node: String, reporter: Reporter) -> (Telling, Self) {
        let (sender, wanted) = watch::channel(Wanted::default());
        let teller = Self {
            node,
            reporter,
            wanted,
            told: None,
            retry: Retry::default(),
        };
        (Telling { wanted: sender }, teller)
    }

    /// Tells, for as long as there is somebody who wants something told.
    pub async fn run(mut self) {
        loop {
            let again = self.step(Instant::now()).await;
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
        }
    }

    /// Tells the newest status if that is news and has rested by `now`. Returns when to try again.
    pub async fn step(&mut self, now: Instant) -> Option<Instant> {
        let wanted = self.wanted.borrow_and_update().clone();
        let status = wanted.status.clone()?;
        if !self.is_news(&wanted, &status) {
            debug!("status unchanged");
            self.retry.succeeded();
            return None;
        }
        if let Some(rested) = self.rests(&wanted, &status, now) {
            return Some(rested);
        }
        match self.reporter.tell(&self.node, &status).await {
            Ok(()) => {
                self.told = Some((wanted, now));
                self.retry.succeeded();
                None
            }
            Err(error) => {
                warn!(error = %chain(&error), "cannot tell the status, will retry");
                Some(now + self.retry.failed())
            }
        }
    }

    fn is_news(&self, wanted: &Wanted, status: &NodeNetworkStatus) -> bool {
        let told = self.told.as_ref().map(|(told, _)| told);
        let believed = told.filter(|told| (&told.uid, told.doubts) == (&wanted.uid, wanted.doubts));
        match believed {
            Some(told) => !told.status.as_ref().is_some_and(|told| same(told, status)),
            // In doubt counts matter too.
            None => !wanted
                .seen
                .as_ref()
                .is_some_and(|seen| same(seen, status) && seen.repairs == status.repairs),
        }
    }

    /// Until when the status may rest, if it may.
    fn rests(&self, wanted: &Wanted, status: &NodeNetworkStatus, now: Instant) -> Option<Instant> {
        let (told, at) = self.told.as_ref()?;
        let before = told.status.as_ref()?;
        let rested = *at + REST;
        let minor = told.uid == wanted.uid && same_but_for_bursts(before, status);
        (minor && rested > now).then_some(rested)
    }
}

#[cfg(test)]
mod tests {
    use netweft_crds::{DriftStatus, RepairCounts};
    use tempfile::TempDir;

    use super::*;
    use crate::retry::RETRY;

    struct Fixture {
        telling: Telling,
        teller: Teller,
        dir: TempDir,
        now: Instant,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let (telling, teller) = Teller::new("one".into(), Reporter::file(dir.path()));
        Fixture {
            telling,
            teller,
            dir,
            now: Instant::now(),
        }
    }

    impl Fixture {
        fn want(&self, status: &NodeNetworkStatus) {
            self.telling.want(Some("u"), None, status.clone());
        }

        /// Whether the step wrote something.
        async fn tells(&mut self) -> bool {
            let file = self.dir.path().join("status.yaml");
            let _ = std::fs::remove_file(&file);
            self.teller.step(self.now).await;
            file.exists()
        }
    }

    fn with_mtu(mtu: u32) -> NodeNetworkStatus {
        NodeNetworkStatus {
            mtu: Some(mtu),
            ..NodeNetworkStatus::default()
        }
    }

    #[tokio::test]
    async fn only_news_is_told_and_what_comes_in_bursts_rests() {
        let mut it = fixture();
        assert!(!it.tells().await, "there is nothing to tell");
        it.want(&with_mtu(1400));
        assert!(it.tells().await);
        assert!(!it.tells().await);
        let mut drifted = with_mtu(1400);
        drifted.drift = Some(DriftStatus::default());
        it.want(&drifted);
        assert!(!it.tells().await, "it was told of a moment ago");
        it.now += REST;
        assert!(it.tells().await);
        it.want(&with_mtu(1300));
        assert!(it.tells().await, "that does not rest");
    }

    #[tokio::test]
    async fn counts_alone_are_told_in_doubt_only() {
        let mut it = fixture();
        it.want(&with_mtu(1400));
        assert!(it.tells().await);
        let mut counted = with_mtu(1400);
        counted.repairs = Some(RepairCounts::default());
        it.want(&counted);
        assert!(!it.tells().await);
        it.telling.doubt();
        it.now += REST;
        assert!(it.tells().await);
    }

    #[tokio::test]
    async fn what_the_api_server_has_is_not_told_again_unless_the_object_is_another() {
        let mut it = fixture();
        let seen = with_mtu(1400);
        it.telling.want(Some("u"), Some(&seen), seen.clone());
        assert!(!it.tells().await);
        it.telling.want(Some("v"), None, seen.clone());
        assert!(it.tells().await);
        assert_eq!(it.telling.known(Some("v"), None), Some(seen.clone()));
        assert_eq!(it.telling.known(Some("w"), None), None);
    }

    #[tokio::test]
    async fn failures_are_tried_again_ever_more_slowly() {
        let mut it = fixture();
        std::fs::create_dir(it.dir.path().join("status.new")).unwrap();
        it.want(&with_mtu(1400));
        let pause = async |it: &mut Fixture| it.teller.step(it.now).await.unwrap() - it.now;
        assert_eq!(pause(&mut it).await, RETRY.0);
        assert_eq!(pause(&mut it).await, RETRY.0 * 2);
        for _ in 0..20 {
            assert!(pause(&mut it).await <= RETRY.1);
        }
        std::fs::remove_dir(it.dir.path().join("status.new")).unwrap();
        assert_eq!(it.teller.step(it.now).await, None);
        it.want(&with_mtu(1300));
        std::fs::create_dir(it.dir.path().join("status.new")).unwrap();
        assert_eq!(pause(&mut it).await, RETRY.0);
    }
}
