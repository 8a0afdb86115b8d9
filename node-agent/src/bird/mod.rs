//! BIRD on this node: writes its configuration, and observes its sessions.
//!
//! ```text
//!   reconciler ──BirdHandle::set──▶ task: passwords ─▶ text ─▶ bird -p ─▶ rename ─▶ configure ─▶ show protocols
//!   reconciler ◀──Observation────────┘   every two seconds while BGP is on
//! ```
//!
//! It is a separate task, so that a BIRD that hangs does not delay the reconciler. Pure: `control_reply`, `failover`,
//! `rejected_prefixes`, `session_error`, `session_history`, `session_status`, `show_protocols`. I/O: `config_file`,
//! `control_socket`, `password_files`, `sync_task`.

mod config_file;
mod control_reply;
mod control_socket;
mod failover;
mod handle;
mod password_files;
mod rejected_prefixes;
mod session_error;
mod session_history;
mod session_status;
mod show_protocols;
mod sync_task;

/// Name of the directory below the run directory that is shared with BIRD.
pub const DIR: &str = "bird";
/// Name of BIRD's control socket in it.
pub const SOCKET: &str = "bird.ctl";

pub use crate::bird::failover::Failover;
pub use crate::bird::handle::{BirdHandle, Observation};
pub use crate::bird::sync_task::{BirdPaths, BirdTask};
