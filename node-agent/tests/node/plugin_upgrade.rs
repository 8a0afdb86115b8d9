//! The plugin is replaced while it is in use.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::lab::{Namespace, Node, Pod, ROUTED, built_plugin};

/// Minimum number of replacements.
const MIN_REPLACEMENTS: usize = 40;

/// Minimum number of pods that start and end meanwhile.
const MIN_PODS: usize = 20;

/// Sets the flag when it is dropped, also when the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn netns_plugin_replaced_while_running_serves_every_pod() {
    let mut node = Node::ready(ROUTED);
    // Two versions: the kernel ignores bytes after the end of a program.
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
                let add = node.plugin(&[], "ADD", &container, &space.path());
                let pod = Pod::of(&container, space, add);
                node.del(&pod.unwrap_or_else(|message| panic!("{container}: {message}")));
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
        let guard = SetOnDrop(&done);
        let mut replacements = 0;
        let is_enough = |replacements| {
            replacements >= MIN_REPLACEMENTS && served.load(Ordering::Relaxed) >= MIN_PODS
        };
        while !is_enough(replacements) && !serving.is_finished() {
            replacements += 1;
            node.install(&versions[replacements % 2]);
        }
        drop(guard);
        serving.join().unwrap();
    });
    assert_eq!(node.check(), (vec![], Some(0)));
}
