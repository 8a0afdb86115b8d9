//! Shared parts of the test programs: commands, processes, polling, the directory of a run.

pub mod command;
pub mod poll;
pub mod process;
pub mod run_dir;
