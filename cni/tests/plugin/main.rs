//! The plugin as a runtime runs it: the real binary, the real kernel, namespaces of the tests' own.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod add;
mod check;
mod del;
#[path = "../lab/mod.rs"]
mod lab;
mod protocol;

const DUAL: [&str; 2] = ["10.244.0.0/29", "fd00:244::/125"];
