//! BIRD on this node: its configuration kept as it should be, its sessions watched.
//!
//! ```text
//!   reconciler ──Option<Bird>──▶ task: passwords ─▶ text ─▶ bird -p ─▶ rename ─▶ configure ─▶ show protocols
//!   reconciler ◀──Observed─────────┘   every two seconds while BGP is on
//! ```
//!
//! A task of its own, so that a BIRD that hangs holds nothing up. `past`, `verdict`, `protocols`, `reply` and `restarts` decide and
//! touch nothing; `control`, `file` and `watcher` touch and decide nothing.

mod control;
mod failover;
mod file;
mod password_files;
mod protocols;
mod reply;
mod session_history;
mod session_status;
mod supervisor;

/// Name of the directory below the run directory that is shared with BIRD.
pub const DIR: &str = "bird";
/// Name of the socket in it over which BIRD takes commands.
pub const SOCKET: &str = "bird.ctl";

pub use crate::bird::failover::Failover;
pub use crate::bird::supervisor::{Link, Observed, Places, Watcher};
