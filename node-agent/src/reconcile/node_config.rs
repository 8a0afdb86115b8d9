//! The configuration of the plugin (`node.json`) and of the container runtime (CNI configuration).

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
    /// Writes the configurations after the datapath has been programmed. A node that has accepted pods continues to do so when
    /// something fails later: the condition reports the failure. Returns whether the plugin allocates from blocks of the spec only.
    pub(super) fn publish_node_config(&mut self, desired: &Desired, outcome: &mut Outcome) -> bool {
        let first = !self.paths.run_dir.join(node::FILE).exists();
        if first && (!desired.has_blocks() || !outcome.is_clean()) {
            return true;
        }
        match desired.plugin.write(&self.paths.run_dir) {
            Ok(true) => {
                info!("wrote blocks for new pods");
                let was_equal = |baseline: &Desired| baseline.plugin == desired.plugin;
                self.record_written_file(&self.paths.run_dir.join(node::FILE), was_equal);
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
                let file = self.paths.cni_conf_dir.join(conf::CONFLIST_FILE);
                self.record_written_file(&file, |_| true);
            }
            Ok(false) => {}
            Err(error) => {
                let file = self.paths.cni_conf_dir.join(conf::CONFLIST_FILE);
                let subject = format!("file {}", file.display());
                outcome.fail(Problem::failure(subject, &error));
            }
        }
        self.health.accepts_pods();
        true
    }

    /// Records a written file as drift, if the last clean sync had the same content: another program has changed the file then.
    pub(super) fn record_written_file(
        &mut self,
        file: &Path,
        was_equal: impl Fn(&Desired) -> bool,
    ) {
        if self.drift.baseline().is_some_and(was_equal) {
            let object = format!("file {}", file.display());
            let difference = Difference {
                found: "none or another".to_owned(),
                wanted: "as it was written".to_owned(),
            };
            let now = Instant::now();
            self.drift.other_repaired("file", &object, &difference, now);
        }
    }

    /// The problems of CNI configurations of other plugins that the runtime prefers.
    pub(super) fn preceding_cni_configurations(&self) -> Vec<Problem> {
        let dir = &self.paths.cni_conf_dir;
        let files = cni_config::preceding(dir).into_iter();
        files
            .map(|file| {
                let file = dir.join(file);
                Problem::from(Cause::OtherCniConfiguration { file })
            })
            .collect()
    }
}
