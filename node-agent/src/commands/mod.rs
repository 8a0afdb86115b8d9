//! The subcommands and the command line.

pub mod args;
pub mod check;
pub mod clean;
pub mod install;
pub mod instance_lock;
pub mod run;
