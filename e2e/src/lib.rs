//! The namespace lab, the scenarios on a real cluster, and what both measure with.

pub mod cluster;
pub mod command;
pub mod lab;
pub mod matrix;
pub mod meter;
pub mod ping;
pub mod poll;
pub mod process;
pub mod run;
pub mod talk;
