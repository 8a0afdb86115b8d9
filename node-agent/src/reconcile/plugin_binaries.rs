//! Keeping the plugins where the container runtime looks for them: whoever updates the runtime may empty the folder.

use netweft_netstate::kernel::Kernel;

use crate::reconcile::Reconciler;
use crate::status::Outcome;
use crate::status::problem::{Problem, ProblemKind};
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
                let message = format!(
                    "{}; without it no pod starts or ends on this node: see whether the folder can be written, and delete the agent's pod of this node if the folder itself was replaced",
                    error_chain(&error)
                );
                let kind = ProblemKind::ProgrammingFailed;
                outcome.fail(Problem::new(kind, "plugins", message));
            }
        }
    }
}
