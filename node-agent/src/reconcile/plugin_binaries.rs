//! Restores the plugins in the plugin directory, which an update of the container runtime may empty.

use netweft_netstate::kernel::Kernel;

use crate::reconcile::Reconciler;
use crate::status::Outcome;
use crate::status::cause::Cause;
use crate::status::problem::Problem;
use netweft_common::error_chain;

impl<K: Kernel> Reconciler<K> {
    /// Restores missing and changed plugins.
    pub(super) fn restore_plugins(&mut self, outcome: &mut Outcome) {
        let Some(plugins) = &mut self.plugins else {
            return;
        };
        match plugins.restore() {
            Ok(restored) => {
                for file in restored {
                    self.record_written_file(&file, |_| true);
                }
            }
            Err(error) => {
                let error = error_chain(&error);
                outcome.fail(Problem::from(Cause::PluginNotRestored { error }));
            }
        }
    }
}
