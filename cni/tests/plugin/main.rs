//! The built plugin binary, called as by a runtime, in network namespaces of the test.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod add;
mod check;
mod del;
#[path = "../netns_node/mod.rs"]
mod netns_node;
mod protocol;

const DUAL: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];
