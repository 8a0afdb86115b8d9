//! What operator, agent and relay tell of themselves in the same way. The plugin does not depend on it: it logs nothing and
//! serves nothing.

pub mod admin;
pub mod logging;
