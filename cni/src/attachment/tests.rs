use super::*;

fn attachment(container: &str, ips: &[&str]) -> Attachment {
    let if_name = "eth0".parse().unwrap();
    let address = |ip: &&str| PodAddress {
        ip: ip.parse().unwrap(),
        pool: "default".to_owned(),
        gateway: None,
    };
    Attachment {
        version: VERSION,
        owner: AttachmentId {
            container_id: container.to_owned(),
            if_name,
        },
        pod: Pod::default(),
        netns: "/run/netns/x".to_owned(),
        addresses: ips.iter().map(address).collect(),
        host_link: "nw0123456789a".parse().unwrap(),
        host_mac: Mac([2, 0, 0, 0, 0, 1]),
        pod_mac: Mac([2, 0, 0, 0, 0, 2]),
        bridge: None,
        mtu: 1350,
    }
}

fn ips(attachment: &Attachment) -> Vec<IpAddr> {
    attachment
        .addresses
        .iter()
        .map(|address| address.ip)
        .collect()
}

#[test]
fn record_is_stored_under_all_addresses_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let mut locked = store.lock(Duration::ZERO).unwrap();
    let one = attachment("one", &["10.0.0.1", "fd00::1"]);
    drop(locked.reserve(&one).unwrap());
    let records = store.list().unwrap();
    assert_eq!(records.keys().copied().collect::<Vec<_>>(), ips(&one));
    assert!(
        records
            .values()
            .all(|record| record.as_ref().unwrap() == &one)
    );
    let clash = locked
        .reserve(&attachment("two", &["10.0.0.2", "fd00::1"]))
        .unwrap_err();
    assert_eq!(clash.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(
        store.names().unwrap().len(),
        2,
        "no record of the second, and no temporary file"
    );
}

/// An append-only directory (`chattr +a`) accepts new names and refuses to delete any.
#[test]
fn reserved_record_counts_when_temporary_name_remains() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let mut locked = store.lock(Duration::ZERO).unwrap();
    let append_only = |flag: &str| {
        let mut chattr = std::process::Command::new("chattr");
        let done = chattr.arg(flag).arg(store.dir()).status().unwrap();
        assert!(done.success(), "chattr {flag}: this test needs root");
    };
    append_only("+a");
    let reserved = locked.reserve(&attachment("one", &["10.0.0.1"]));
    append_only("-a");
    drop(reserved.unwrap());
    assert_eq!(store.allocated().unwrap().len(), 1);
    drop(locked.reserve(&attachment("two", &["10.0.0.2"])).unwrap());
    assert_eq!(
        store.names().unwrap().len(),
        2,
        "the temporary file is removed"
    );
}

#[test]
fn release_requires_owner_and_is_idempotent() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let mut locked = store.lock(Duration::ZERO).unwrap();
    let one = attachment("one", &["10.0.0.1"]);
    drop(locked.reserve(&one).unwrap());
    locked
        .release(&attachment("two", &[]).owner, ips(&one))
        .unwrap();
    assert_eq!(store.allocated().unwrap().len(), 1);
    locked.release(&one.owner, ips(&one)).unwrap();
    locked.release(&one.owner, ips(&one)).unwrap();
    assert_eq!(store.allocated().unwrap().len(), 0);
}

#[test]
fn leftovers_of_killed_writer_are_removed_records_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let mut locked = store.lock(Duration::ZERO).unwrap();
    let one = attachment("one", &["10.0.0.1"]);
    drop(locked.reserve(&one).unwrap());
    // A process with the ID of this one was killed between link and unlink.
    let temporary = store.dir().join(format!(".new.{}", std::process::id()));
    fs::hard_link(store.path("10.0.0.1".parse().unwrap()), &temporary).unwrap();
    fs::write(store.dir().join(".new.1"), "").unwrap();
    drop(locked.reserve(&attachment("two", &["10.0.0.2"])).unwrap());
    assert_eq!(store.names().unwrap().len(), 2);
    assert_eq!(store.read("10.0.0.1".parse().unwrap()).unwrap(), one);
}

#[test]
fn cursors_persist_and_damaged_cursors_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let cursors = BTreeMap::from([("10.0.0.0/26".parse().unwrap(), "10.0.0.7".parse().unwrap())]);
    store.lock(Duration::ZERO).unwrap().store_cursors(&cursors);
    let read = || store.lock(Duration::ZERO).unwrap().cursors();
    assert_eq!(read(), cursors);
    fs::write(dir.path().join("lock"), "{").unwrap();
    assert_eq!(read(), BTreeMap::new());
}

#[test]
fn store_lock_is_exclusive_and_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let held = store.lock(Duration::ZERO).unwrap();
    let refused = store.lock(Duration::from_millis(5)).err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    drop(held);
    assert!(store.lock(Duration::ZERO).is_ok());
}

#[test]
fn add_is_in_progress_until_reservation_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let one = attachment("one", &["10.0.0.1", "fd00::1"]);
    let in_progress = |ip: &IpAddr| store.add_in_progress(*ip).unwrap();
    let held = store.lock(Duration::ZERO).unwrap().reserve(&one).unwrap();
    assert!(ips(&one).iter().all(in_progress));
    drop(held);
    assert!(!ips(&one).iter().any(in_progress));
    assert!(!in_progress(&"10.0.0.9".parse().unwrap()));
}
