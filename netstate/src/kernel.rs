//! The interface to the kernel, and a fake kernel for tests.

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
    /// Reads the complete state, with foreign objects.
    ///
    /// # Errors
    /// When no consistent state can be read. The result is never incomplete.
    fn read(&self) -> impl Future<Output = Result<NetworkState, Error>> + Send;

    /// The link and the source address of a packet to `to`, as in `ip route get`, with policy routing. `None` if the kernel
    /// cannot send the packet.
    ///
    /// # Errors
    /// When the kernel does not reply.
    fn select_route(
        &self,
        to: IpAddr,
    ) -> impl Future<Output = Result<Option<SelectedRoute>, Error>> + Send;

    /// Executes one operation. The deletion of an absent object succeeds.
    ///
    /// # Errors
    /// When the kernel refuses; the error names the operation.
    fn apply(&self, op: &Op) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether requests can reach the kernel. A connection that has ended stays ended.
    fn is_connected(&self) -> bool {
        true
    }
}

/// A kernel in memory that simulates refusals and cascades on a [`NetworkState`].
///
/// The tests `netns_*` compare it with the real kernel.
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

    /// From now on calls `fault` before every operation: if it returns an error number, the operation fails without effect.
    pub fn fail_with(&self, fault: impl FnMut(&Op) -> Option<Errno> + Send + 'static) {
        self.lock().fault = Some(Box::new(fault));
    }

    /// Removes the fault of [`Self::fail_with`].
    pub fn clear_fault(&self) {
        self.lock().fault = None;
    }

    /// The present state.
    #[must_use]
    pub fn state(&self) -> NetworkState {
        self.lock().state.clone()
    }

    /// Changes the state without an operation, as another program does.
    pub fn change_externally(&self, change: impl FnOnce(&mut NetworkState)) {
        change(&mut self.lock().state);
    }

    /// The operations that succeeded since the last call, in order.
    #[must_use]
    pub fn take_applied(&self) -> Vec<Op> {
        std::mem::take(&mut self.lock().applied)
    }

    /// Executes one operation, without an asynchronous runtime.
    ///
    /// # Errors
    /// As the kernel would, or as [`FakeKernel::fail_with`] defines.
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
        // A panic of another test thread leaves a consistent state: nothing here panics between two changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for FakeKernel {
    async fn read(&self) -> Result<NetworkState, Error> {
        Ok(self.state())
    }

    /// By the longest prefix in table `main`, as without policy routing.
    async fn select_route(&self, to: IpAddr) -> Result<Option<SelectedRoute>, Error> {
        let state = self.lock();
        let routes = state.state.routes.iter();
        let matching = routes.filter(|(key, _)| key.dst.contains(&to));
        let best = matching.max_by_key(|(key, _)| (key.dst.prefix_len(), Reverse(key.metric)));
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
