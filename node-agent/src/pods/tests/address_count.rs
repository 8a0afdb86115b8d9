//! The ADDs that have to end before the addresses of pods are counted.

use crate::pods::tests::*;

const ONE: &str = "10.0.0.0/26";
const OTHER: &str = "10.0.0.64/26";

impl Fixture {
    /// The addresses that are counted when `node.json` has these blocks.
    fn count(&mut self, blocks: &[&str]) -> io::Result<Option<BTreeSet<IpAddr>>> {
        let blocks = blocks.iter().map(|block| block.parse().unwrap()).collect();
        self.pods.assigned_addresses(Some(blocks))
    }

    /// Whether the count fails while another process holds the lock.
    fn requires_lock(&mut self, blocks: &[&str]) -> bool {
        match self.count(blocks) {
            Ok(taken) => {
                assert!(taken.is_some());
                false
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                true
            }
        }
    }
}

#[test]
fn removed_block_count_waits_for_add_holding_lock() {
    let mut node = fixture();
    assert_eq!(node.count(&[ONE, OTHER]).unwrap(), Some(BTreeSet::new()));
    let store = node.store();
    let mut add = store.lock(Duration::ZERO).unwrap();
    assert!(!node.requires_lock(&[ONE, OTHER]));
    assert!(node.requires_lock(&[ONE]));
    assert!(node.requires_lock(&[ONE]), "the second attempt");
    drop(add.reserve(&attachment("one", &["10.0.0.66"])).unwrap());
    drop(add);
    let taken = BTreeSet::<IpAddr>::from(["10.0.0.66".parse().unwrap()]);
    assert_eq!(node.count(&[ONE]).unwrap(), Some(taken));
}

#[test]
fn added_block_count_does_not_wait_for_add() {
    let mut node = fixture();
    assert!(!node.requires_lock(&[ONE]));
    let store = node.store();
    let _add = store.lock(Duration::ZERO).unwrap();
    assert!(!node.requires_lock(&[ONE, OTHER]));
    assert!(node.requires_lock(&[OTHER]));
}

#[test]
fn unknown_earlier_blocks_make_count_wait_for_add() {
    let mut node = fixture();
    let store = node.store();
    let add = store.lock(Duration::ZERO).unwrap();
    assert!(node.requires_lock(&[ONE]));
    drop(add);
    assert!(!node.requires_lock(&[ONE]));
    assert_eq!(node.pods.assigned_addresses(None).unwrap(), None);
    let _add = store.lock(Duration::ZERO).unwrap();
    assert!(node.requires_lock(&[ONE]));
}
