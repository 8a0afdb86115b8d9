//! A network namespace for tests. The tests of the node agent include this file too.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Output};

use netweft_netstate::netns;

/// A network namespace, which exists as long as this value.
pub struct Namespace(OwnedFd);

impl Namespace {
    pub fn new() -> Self {
        let created = netns::create();
        Self(created.expect("these tests create network namespaces: run them as root"))
    }

    /// A path that other processes can open while this process runs.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::run_in(self.0.as_fd(), "run a test", work).unwrap()
    }

    pub fn command(&self, line: &str) -> Output {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.run(|| {
            Command::new(words[0])
                .args(&words[1..])
                .output()
                .expect(line)
        })
    }

    pub fn ip(&self, arguments: &str) -> String {
        let output = self.command(&format!("ip {arguments}"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}
