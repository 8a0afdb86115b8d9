//! STATUS: whether ADD can succeed.
//!
//! For code 50 the kubelet reports the node as not ready, and its pods are evicted after five minutes. STATUS therefore
//! answers 50 for one reason only: the agent has not finished its first sync after the boot. ADD works while the agent is
//! stopped. A full pool and a full or read-only disk are errors of ADD, because running pods need neither.

use std::path::Path;

use netweft_netstate::rtnl::Rtnl;

use super::{attachments_error, block_on, store};
use crate::conf::NetConf;
use crate::error::PluginError;
use crate::node::{NodeConfig, NodeConfigError};

/// Checks the inputs of ADD: `node.json`, the attachment records, netlink.
pub(super) fn status(conf: &NetConf) -> Result<(), PluginError> {
    match NodeConfig::read(Path::new(&conf.run_dir)) {
        Ok(_) => {}
        Err(NodeConfigError::Missing) => {
            return Err(PluginError::NotReady(NodeConfigError::Missing));
        }
        Err(error) => return Err(PluginError::Node(error)),
    }
    store(conf)
        .allocated()
        .map_err(attachments_error("read the attachment records", conf))?;
    block_on(async {
        let loopback = "lo"
            .parse()
            .map_err(|error| PluginError::Config(format!("{error}")))?;
        Rtnl::new()?.link_exists(&loopback).await?;
        Ok(())
    })
}
