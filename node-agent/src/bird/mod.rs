//! BIRD on this node: its configuration kept as it should be, its sessions watched.
//!
//! ```text
//!   reconciler ──Option<Bird>──▶ task: passwords ─▶ text ─▶ bird -p ─▶ rename ─▶ configure ─▶ show protocols
//!   reconciler ◀──Observed─────────┘   every two seconds while BGP is on
//! ```
//!
//! A task of its own, so that a BIRD that hangs holds nothing up. `verdict`, `protocols` and `reply` decide and touch
//! nothing; `control`, `file` and `watcher` touch and decide nothing.

mod control;
mod file;
mod protocols;
mod reply;
mod verdict;
mod watcher;

pub use watcher::{Link, Observed, Places, Watcher};
