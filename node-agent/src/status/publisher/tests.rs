use netweft_crds::{DriftStatus, RepairCounts};
use tempfile::TempDir;

use crate::status::publisher::*;

/// The limit of the loop in these tests.
const LIMIT: Duration = Duration::from_millis(100);

struct Fixture {
    status: StatusHandle,
    publisher: StatusPublisher,
    health: Health,
    dir: TempDir,
    now: Instant,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let health = Health::with_limits(LIMIT, Duration::MAX);
    let sink = StatusSink::file(dir.path());
    let (status, publisher) = StatusPublisher::new("one".into(), sink, health.clone());
    Fixture {
        status,
        publisher,
        health,
        dir,
        now: Instant::now(),
    }
}

impl Fixture {
    fn set(&self, status: &NodeNetworkStatus) {
        self.status.set(Some("u"), None, status.clone());
    }

    /// Whether the step wrote a status.
    async fn writes(&mut self) -> bool {
        let file = self.dir.path().join("status.yaml");
        let _ = std::fs::remove_file(&file);
        self.publisher.step(self.now).await;
        file.exists()
    }
}

/// Status and reason of the condition Ready, as written.
fn ready_in(dir: &TempDir) -> (String, String) {
    let text = std::fs::read_to_string(dir.path().join("status.yaml")).unwrap();
    let status: NodeNetworkStatus = serde_saphyr::from_str(&text).unwrap();
    let mut conditions = status.conditions.into_iter();
    let ready = conditions.find(|it| it.type_ == "Ready").unwrap();
    assert_eq!(status.mtu, Some(1400), "the rest of the status stays");
    (ready.status, ready.reason)
}

#[tokio::test]
async fn stalled_loop_sets_not_ready_until_next_beat() {
    let mut it = fixture();
    let ready = Verdict::ready(Reason::Programmed, "m");
    let mut status = with_mtu(1400);
    status.conditions = ready.conditions(Some(1), &[], Timestamp::now());
    it.health.beat();
    it.set(&status);
    assert!(it.writes().await);
    assert_eq!(ready_in(&it.dir), ("True".into(), "Programmed".into()));
    tokio::time::sleep(LIMIT * 2).await;
    assert!(it.writes().await);
    assert_eq!(ready_in(&it.dir), ("False".into(), "AgentStalled".into()));
    assert!(!it.writes().await, "once");
    it.health.beat();
    assert!(it.writes().await);
    assert_eq!(ready_in(&it.dir), ("True".into(), "Programmed".into()));
}

#[tokio::test]
async fn stall_in_first_round_is_reported_with_stored_status() {
    let mut it = fixture();
    it.health.beat();
    tokio::time::sleep(LIMIT * 2).await;
    assert!(!it.writes().await, "the object does not exist yet");
    it.status.attach(Some("u"), Some(&with_mtu(1400)));
    assert!(it.writes().await);
    assert_eq!(ready_in(&it.dir), ("False".into(), "AgentStalled".into()));
}

fn with_mtu(mtu: u32) -> NodeNetworkStatus {
    NodeNetworkStatus {
        mtu: Some(mtu),
        ..NodeNetworkStatus::default()
    }
}

#[tokio::test]
async fn status_is_written_on_change_and_rate_limited() {
    let mut it = fixture();
    assert!(!it.writes().await, "no status is set");
    it.set(&with_mtu(1400));
    assert!(it.writes().await);
    assert!(!it.writes().await);
    let mut drifted = with_mtu(1400);
    drifted.drift = Some(DriftStatus::default());
    it.set(&drifted);
    assert!(!it.writes().await, "within the minimum interval");
    it.now += MIN_INTERVAL;
    assert!(it.writes().await);
    it.set(&with_mtu(1300));
    assert!(it.writes().await, "the interval does not apply");
}

#[tokio::test]
async fn count_only_change_is_written_after_invalidation() {
    let mut it = fixture();
    it.set(&with_mtu(1400));
    assert!(it.writes().await);
    let mut counted = with_mtu(1400);
    counted.repairs = Some(RepairCounts::default());
    it.set(&counted);
    assert!(!it.writes().await);
    it.status.invalidate();
    it.now += MIN_INTERVAL;
    assert!(it.writes().await);
}

#[tokio::test]
async fn stored_status_is_rewritten_only_for_new_object_uid() {
    let mut it = fixture();
    let stored = with_mtu(1400);
    it.status.set(Some("u"), Some(&stored), stored.clone());
    assert!(!it.writes().await);
    it.status.set(Some("v"), None, stored.clone());
    assert!(it.writes().await);
    assert_eq!(it.status.last(Some("v"), None), Some(stored.clone()));
    assert_eq!(it.status.last(Some("w"), None), None);
}

#[tokio::test]
async fn status_write_failures_back_off() {
    let mut it = fixture();
    std::fs::create_dir(it.dir.path().join("status.new")).unwrap();
    it.set(&with_mtu(1400));
    let delay = async |it: &mut Fixture| it.publisher.step(it.now).await.unwrap() - it.now;
    assert!(delay(&mut it).await <= RETRY.0);
    assert!((RETRY.0..=RETRY.0 * 2).contains(&delay(&mut it).await));
    for _ in 0..20 {
        assert!(delay(&mut it).await <= RETRY.1);
    }
    std::fs::remove_dir(it.dir.path().join("status.new")).unwrap();
    assert_eq!(it.publisher.step(it.now).await, None);
    it.set(&with_mtu(1300));
    std::fs::create_dir(it.dir.path().join("status.new")).unwrap();
    assert!(delay(&mut it).await <= RETRY.0);
}
