//! The plugin is replaced while it is in use.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::lab::{Namespace, Node, Pod, ROUTED, built_plugin};

/// How often it is replaced at least.
const TIMES: usize = 40;

/// How many pods have to come and go meanwhile.
const PODS: usize = 20;

/// Ends what waits for it, when a test fails too.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn netns_plugin_replaced_while_running_serves_every_pod() {
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
    let (done, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let container = format!("pod-{}", served.load(Ordering::Relaxed));
                let space = Namespace::new();
                let added = node.plugin(&[], "ADD", &container, &space.path());
                let pod = Pod::of(&container, space, added);
                node.del(&pod.unwrap_or_else(|said| panic!("{container}: {said}")));
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
        let ends = Ends(&done);
        let mut replaced = 0;
        let enough = |replaced| replaced >= TIMES && served.load(Ordering::Relaxed) >= PODS;
        while !enough(replaced) && !serving.is_finished() {
            replaced += 1;
            node.install(&versions[replaced % 2]);
        }
        drop(ends);
        serving.join().unwrap();
    });
    assert_eq!(node.check(), (vec![], Some(0)));
}
