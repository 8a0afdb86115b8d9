//! The namespace lab, the scenarios on a real cluster, and what both measure with.

pub mod harness;
pub mod kind;
pub mod lab;
pub mod traffic;
