//! What the plugin and the container runtime read: node.json and the CNI configuration.

use std::path::Path;
use std::time::Instant;

use netweft_cni::conf;
use netweft_cni::node;
use netweft_netstate::kernel::Kernel;
use tracing::info;

use crate::apply::cni_config;
use crate::desired::Desired;
use crate::drift::Difference;
use crate::reconcile::Reconciler;
use crate::status::Outcome;
use crate::status::cause::Cause;
use crate::status::problem::Problem;

impl<K: Kernel> Reconciler<K> {
    /// Let the plugin serve, once the datapath stands. A node that served before goes on serving when something
    /// fails later: that is a condition, not a reason to refuse pods. Says whether the plugin gives addresses of the spec's blocks
    /// only.
    pub(super) fn publish_node_config(&mut self, desired: &Desired, outcome: &mut Outcome) -> bool {
        let first = !self.paths.run_dir.join(node::FILE).exists();
        if first && (!desired.has_blocks() || !outcome.is_clean()) {
            return true;
        }
        match desired.plugin.write(&self.paths.run_dir) {
            Ok(true) => {
                info!("wrote blocks for new pods");
                let was = |settled: &Desired| settled.plugin == desired.plugin;
                self.file_written(&self.paths.run_dir.join(node::FILE), was);
            }
            Ok(false) => {}
            Err(error) => {
                let cause = Cause::FileNotWritten {
                    file: self.paths.run_dir.join(node::FILE),
                    error: error.to_string(),
                };
                outcome.fail(Problem::from(cause));
                return false;
            }
        }
        match cni_config::ensure(
            &self.paths.cni_conf_dir,
            &conf::conflist(&self.paths.run_dir.to_string_lossy()),
        ) {
            Ok(true) => {
                info!(dir = %self.paths.cni_conf_dir.display(), "wrote CNI configuration, node accepts pods");
                self.file_written(&self.paths.cni_conf_dir.join(conf::CONFLIST_FILE), |_| true);
            }
            Ok(false) => {}
            Err(error) => {
                let file = self.paths.cni_conf_dir.join(conf::CONFLIST_FILE);
                let subject = format!("file {}", file.display());
                outcome.fail(Problem::failure(subject, &error));
            }
        }
        self.health.opened();
        true
    }

    /// A file has been written; if it was right before, somebody else has changed it.
    pub(super) fn file_written(&mut self, file: &Path, was_right: impl Fn(&Desired) -> bool) {
        if self.drifts.settled().is_some_and(was_right) {
            let what = format!("file {}", file.display());
            let difference = Difference {
                found: "none or another".to_owned(),
                wanted: "as it was written".to_owned(),
            };
            let now = Instant::now();
            self.drifts.thing_repaired("file", &what, &difference, now);
        }
    }

    pub(super) fn foreign_configurations(&self) -> Vec<Problem> {
        let dir = &self.paths.cni_conf_dir;
        let files = cni_config::in_front(dir).into_iter();
        files
            .map(|file| {
                let file = dir.join(file);
                Problem::from(Cause::OtherCniConfiguration { file })
            })
            .collect()
    }
}
