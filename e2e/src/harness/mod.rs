//! What every program of the suite is made of: commands, processes, polling, the folder of a run.

pub mod command;
pub mod poll;
pub mod process;
pub mod run_dir;
