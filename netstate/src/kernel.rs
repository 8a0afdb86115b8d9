//! The seam between what is decided and what the kernel does, with a kernel made of memory for tests.

use std::cmp::Reverse;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::error::Error;
use crate::model::{NetworkState, SelectedRoute};
use crate::op::Op;
use crate::simulate;

/// One network namespace that can be read and changed.
pub trait Kernel {
    /// Reads the whole state, ours and foreign.
    ///
    /// # Errors
    /// When no consistent picture could be had; never a partial one.
    fn read(&self) -> impl Future<Output = Result<NetworkState, Error>> + Send;

    /// By which link the kernel sends a packet to `to`, and from which address: `ip route get`, so policy routing counts. `None` if it
    /// cannot send.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn select_route(
        &self,
        to: IpAddr,
    ) -> impl Future<Output = Result<Option<SelectedRoute>, Error>> + Send;

    /// Carries out one operation. Deleting what is not there succeeds.
    ///
    /// # Errors
    /// When the kernel refuses; the error names the operation.
    fn apply(&self, op: &Op) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether requests can reach the kernel. A connection that has ended does not come back.
    fn is_connected(&self) -> bool {
        true
    }
}

/// A fold of operations over a [`NetworkState`] that accepts and cascades what the kernel does.
///
/// Not for proving that the kernel agrees: the tests named `netns_*` do that.
#[derive(Default)]
pub struct FakeKernel(Mutex<Inner>);

type Fault = Box<dyn FnMut(&Op) -> Option<Errno> + Send>;

#[derive(Default)]
struct Inner {
    state: NetworkState,
    applied: Vec<Op>,
    fault: Option<Fault>,
}

impl FakeKernel {
    /// A kernel in this state.
    #[must_use]
    pub fn new(state: NetworkState) -> Self {
        Self(Mutex::new(Inner {
            state,
            ..Inner::default()
        }))
    }

    /// From now on asks `fault` before every operation: an error number makes it fail and change nothing.
    pub fn fail_with(&self, fault: impl FnMut(&Op) -> Option<Errno> + Send + 'static) {
        self.lock().fault = Some(Box::new(fault));
    }

    /// From now on lets every operation pass.
    pub fn heal(&self) {
        self.lock().fault = None;
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> NetworkState {
        self.lock().state.clone()
    }

    /// Changes the state behind everybody's back, as an administrator would.
    pub fn meddle(&self, change: impl FnOnce(&mut NetworkState)) {
        change(&mut self.lock().state);
    }

    /// The operations that succeeded since the last call, in order.
    #[must_use]
    pub fn take_applied(&self) -> Vec<Op> {
        std::mem::take(&mut self.lock().applied)
    }

    /// Carries out one operation, without a runtime.
    ///
    /// # Errors
    /// As the kernel would, or as [`FakeKernel::fail_with`] says.
    pub fn apply_now(&self, op: &Op) -> Result<(), Error> {
        let refused = |errno| Error::Refused {
            what: op.to_string(),
            errno,
        };
        let mut inner = self.lock();
        if let Some(errno) = inner.fault.as_mut().and_then(|fault| fault(op)) {
            return Err(refused(errno));
        }
        simulate::apply(&mut inner.state, op).map_err(refused)?;
        inner.applied.push(op.clone());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic of another test thread leaves the state whole: nothing in here panics between two changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for FakeKernel {
    async fn read(&self) -> Result<NetworkState, Error> {
        Ok(self.state())
    }

    /// By the longest prefix in table `main`, as where nobody has set a rule.
    async fn select_route(&self, to: IpAddr) -> Result<Option<SelectedRoute>, Error> {
        let state = self.lock();
        let around = state.state.routes.iter();
        let around = around.filter(|(key, _)| key.dst.contains(&to));
        let best = around.max_by_key(|(key, _)| (key.dst.prefix_len(), Reverse(key.metric)));
        Ok(best.and_then(|(_, route)| {
            Some(SelectedRoute {
                link: route.dev.clone()?,
                source: route.source,
            })
        }))
    }

    async fn apply(&self, op: &Op) -> Result<(), Error> {
        self.apply_now(op)
    }
}
