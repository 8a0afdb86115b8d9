//! Helpers of tests.

use netweft_netstate::netns;

/// Runs a test in a separate network namespace, so that nft changes no table of the machine.
pub fn in_namespace(test: impl AsyncFnOnce() + Send) {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    };
    netns::run_in_new("run a test", run).unwrap();
}
