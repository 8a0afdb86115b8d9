//! The plugin is replaced while it is in use.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lab::{Namespace, Node, Pod, ROUTED, built_plugin};

/// How often it is replaced.
const TIMES: usize = 40;

#[test]
fn netns_a_plugin_that_is_replaced_while_it_runs_serves_every_pod() {
    let mut node = Node::ready(ROUTED);
    // Two versions: what stands behind a program is not looked at.
    let versions = ["one", "two"].map(|version| node.path(version));
    for (number, folder) in versions.iter().enumerate() {
        fs::create_dir(folder).unwrap();
        let file = folder.join("netweft");
        fs::copy(built_plugin(), &file).unwrap();
        let mut file = fs::File::options().append(true).open(file).unwrap();
        file.write_all(&vec![0; number]).unwrap();
    }
    node.install(&versions[0]);
    node.installed = true;
    let done = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let mut served = 0;
            while !done.load(Ordering::Relaxed) {
                let container = format!("pod-{served}");
                let space = Namespace::new();
                let added = node.plugin(&[], "ADD", &container, &space.path());
                let pod = Pod::of(&container, space, added);
                node.del(&pod.unwrap_or_else(|said| panic!("{container}: {said}")));
                served += 1;
            }
            served
        });
        for number in 0..TIMES {
            node.install(&versions[(number + 1) % 2]);
        }
        done.store(true, Ordering::Relaxed);
        serving.join().unwrap()
    });
    assert!(
        served > TIMES / 4,
        "{served} pods came while it was replaced {TIMES} times"
    );
    assert_eq!(node.check(), (vec![], Some(0)));
}
