//! The commands of the program and its command line.

pub mod args;
pub mod cleanup;
pub mod run;
