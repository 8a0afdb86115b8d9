//! Logging and the admin server of operator, agent and relay. The plugin does not depend on this crate.

pub mod admin;
pub mod logging;
