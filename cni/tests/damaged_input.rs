//! Damaged input of the plugin: the configuration of the runtime, and files that a crash or another program has changed.

use std::fs;
use std::time::SystemTime;

use netweft_cni::attachment::{Attachment, Store};
use netweft_cni::block_requests::{BlockRequest, BlockRequests};
use netweft_cni::conf::NetConf;
use netweft_cni::node::NodeConfig;
use proptest::prelude::*;

#[path = "../../tests/mutated.rs"]
mod mutated;
use mutated::mutated;

/// The input of ADD and GC.
const CONFS: [&str; 2] = [
    r#"{"cniVersion":"1.1.0","name":"netweft","type":"netweft","runDir":"/run/netweft","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"netweft.io/pools":"a,b"},"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}}"#,
    r#"{"cniVersion":"1.1.0","name":"netweft","type":"netweft","cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]}"#,
];
const NODE: &str = r#"{"version":1,"pools":[{"name":"a","podInterface":"routed","mtu":1450,"blocks":["10.244.0.0/26"],"reserved":["10.244.0.1/32"]},{"name":"b","podInterface":"bridge","mtu":1450,"blocks":["10.99.0.0/26"],"bridge":{"link":"nw-br0","mac":"02:00:00:00:00:01","gateways":{"10.99.0.0/26":"10.99.0.1"}}}]}"#;
const RECORD: &str = r#"{"version":1,"owner":{"containerID":"c1","ifName":"eth0"},"pod":{"namespace":"default","name":"web"},"netns":"/var/run/netns/1","addresses":[{"ip":"10.244.0.2","pool":"a"}],"hostLink":"nw0123456789a","hostMac":"02:00:00:00:00:01","podMac":"02:00:00:00:00:02","mtu":1450}"#;
const REQUEST: &str = r#"{"version":1,"pools":["a","b"]}"#;

/// Damage of input that is refused anyway would show nothing.
#[test]
fn inputs_before_damage_are_valid() {
    for conf in CONFS {
        serde_json::from_str::<NetConf>(conf).unwrap();
    }
    serde_json::from_str::<NodeConfig>(NODE).unwrap();
    serde_json::from_str::<Attachment>(RECORD).unwrap();
    serde_json::from_str::<BlockRequest>(REQUEST).unwrap();
}

fn corpus(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

proptest! {
    #[test]
    fn damaged_network_configuration_is_read_or_refused(bytes in mutated(corpus(&CONFS))) {
        drop(serde_json::from_slice::<NetConf>(&bytes));
    }

    #[test]
    fn damaged_node_config_is_read_or_refused(bytes in mutated(corpus(&[NODE]))) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("node.json"), bytes).unwrap();
        drop(NodeConfig::read(dir.path()));
    }

    /// The address of a record that cannot be read stays allocated.
    #[test]
    fn damaged_record_keeps_its_address_allocated(bytes in mutated(corpus(&[RECORD]))) {
        let dir = tempfile::tempdir().unwrap();
        let records = dir.path().join("attachments");
        fs::create_dir(&records).unwrap();
        fs::write(records.join("10.244.0.2"), bytes).unwrap();
        let store = Store::new(dir.path());
        prop_assert_eq!(store.allocated().unwrap().len(), 1);
        prop_assert_eq!(store.list().unwrap().len(), 1);
    }

    #[test]
    fn damaged_block_request_is_listed_or_removed(bytes in mutated(corpus(&[REQUEST]))) {
        let dir = tempfile::tempdir().unwrap();
        let requests = BlockRequests::new(dir.path());
        requests.submit(&["c".to_owned()]).unwrap();
        fs::write(requests.dir().join("request"), bytes).unwrap();
        let pending = requests.pending(|_| false, SystemTime::now()).unwrap();
        prop_assert!(pending.iter().any(|request| request.pools == ["c"]));
    }
}
