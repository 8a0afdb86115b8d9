//! STATUS: whether ADD would be served.
//!
//! The kubelet takes 50 for a node that is not ready and evicts its pods after five minutes. So it means one thing only:
//! this boot's first sync is not done. A stopped agent does not matter to ADD, and a full pool is ADD's own answer, as is a
//! disk that is full or read-only: pods that run need neither.

use std::path::Path;

use netweft_netstate::rtnl::Rtnl;

use super::{attachments_error, block_on, store};
use crate::conf::NetConf;
use crate::error::PluginError;
use crate::node::{NodeConfig, NodeConfigError};

/// Looks at what ADD needs: the node's configuration, the records, the kernel.
pub(super) fn status(conf: &NetConf) -> Result<(), PluginError> {
    match NodeConfig::read(Path::new(&conf.run_dir)) {
        Ok(_) => {}
        Err(NodeConfigError::Missing) => {
            return Err(PluginError::NotReady(NodeConfigError::Missing));
        }
        Err(error) => return Err(PluginError::Node(error)),
    }
    store(conf)
        .taken()
        .map_err(attachments_error("read the attachments", conf))?;
    block_on(async {
        let loopback = "lo"
            .parse()
            .map_err(|error| PluginError::Config(format!("{error}")))?;
        Rtnl::new()?.link_exists(&loopback).await?;
        Ok(())
    })
}
