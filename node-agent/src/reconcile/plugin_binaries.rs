//! Restores the plugins in the folder of the container runtime, which an update of the runtime may empty.

use netweft_netstate::kernel::Kernel;

use crate::reconcile::Reconciler;
use crate::status::Outcome;
use crate::status::cause::Cause;
use crate::status::problem::Problem;
use netweft_common::error_chain;

impl<K: Kernel> Reconciler<K> {
    /// Puts back plugins that are missing or changed.
    pub(super) fn keep_plugins(&mut self, outcome: &mut Outcome) {
        let Some(plugins) = &mut self.plugins else {
            return;
        };
        match plugins.ensure() {
            Ok(restored) => {
                for file in restored {
                    self.file_written(&file, |_| true);
                }
            }
            Err(error) => {
                let error = error_chain(&error);
                outcome.fail(Problem::from(Cause::PluginNotRestored { error }));
            }
        }
    }
}
