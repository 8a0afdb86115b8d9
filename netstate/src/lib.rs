//! The kernel's network state as data: read it, compare it with the desired state, apply the difference.
//!
//! ```text
//!   kernel ──read──▶ NetworkState (actual) ─┐
//!                    NetworkState (desired) ─┴─▶ diff ─▶ Vec<Op> ──apply──▶ kernel
//! ```
//!
//! This crate does not depend on Kubernetes, and it is the only one that may use rtnetlink.

pub mod diff;
pub mod error;
pub mod events;
pub mod kernel;
pub mod model;
#[cfg(test)]
#[path = "../../tests/mutated.rs"]
mod mutated;
pub mod netns;
pub mod object_ref;
pub mod op;
pub mod owner;
pub mod rtnl;
mod simulate;
