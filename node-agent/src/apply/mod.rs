//! What the agent changes besides links and routes: the nft table, kernel parameters, the runtime's configuration; and how it runs other programs.

pub mod cni_config;
pub mod nft;
pub mod subprocess;
pub mod sysctl;
