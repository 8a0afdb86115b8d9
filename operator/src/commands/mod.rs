//! What the program can be asked to do, and its command line.

pub mod args;
pub mod cleanup;
pub mod run;
