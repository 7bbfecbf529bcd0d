//! Guarded waiting for a store: only in the process that began the operation, and inline under the blocking API.
//!
//! # Inherited futures
//!
//! In a child, an operation that the parent began returns an error at the next poll. Its future is leaked, not dropped
//! ([`ProcessBound`]). That is possible because it is on the heap.
//!
//! # Stores of other crates
//!
//! Under the blocking API, the stores of this crate wait inline, so that their futures are ready at the first poll. A
//! store that suspends nevertheless is waited for here, by parking the thread; on a multi-thread runtime inside
//! `block_in_place`. On the thread of a current-thread runtime, that would be a deadlock. In a slice, the caller that
//! runs the slice waits.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Cache;
#[cfg(feature = "tokio")]
use crate::error::ErrorKind;
use crate::error::{Error, Result};
use crate::execution::{is_inline, slice_end, within};
use crate::lifecycle::ProcessBound;
use crate::sync::block_on;

/// A store's future.
type Operation<'a, T> = dyn Future<Output = T> + Send + 'a;

/// Guards a future: it ends only in the process that began it, and under the blocking API at its first poll.
#[inline]
pub(super) fn fork_guarded<T>(operation: Pin<Box<Operation<'_, T>>>) -> ForkGuarded<'_, T> {
    ForkGuarded { operation: ProcessBound::new(operation), timeout: None }
}

impl Cache {
    /// [`fork_guarded`] for a store's future, with the timeout of this handle.
    #[inline]
    pub(super) fn fork_guarded<'a, T>(&self, operation: Pin<Box<Operation<'a, T>>>) -> ForkGuarded<'a, T> {
        ForkGuarded { timeout: self.timeout, ..fork_guarded(operation) }
    }
}

pub(super) struct ForkGuarded<'a, T> {
    operation: ProcessBound<Operation<'a, T>>,
    timeout: Option<Duration>,
}

impl<T> Future for ForkGuarded<'_, T> {
    type Output = Result<T>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let timeout = self.timeout;
        let Some(operation) = self.operation.get() else { return Poll::Ready(Err(Error::begun_by_parent())) };
        let polled = match timeout {
            None => operation.as_mut().poll(cx),
            Some(timeout) => within(timeout, || operation.as_mut().poll(cx)),
        };
        match polled {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if is_inline() && slice_end().is_none() => Poll::Ready(wait_for(operation)),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cold]
#[cfg_attr(not(feature = "tokio"), expect(clippy::unnecessary_wraps))]
fn wait_for<T>(operation: &mut Pin<Box<Operation<'_, T>>>) -> Result<T> {
    #[cfg(feature = "tokio")]
    if let Ok(handle) = tokio::runtime::Handle::try_current() {
        use tokio::runtime::RuntimeFlavor;

        return match handle.runtime_flavor() {
            RuntimeFlavor::CurrentThread => {
                let context = "the store suspends, and waiting for it would block the only thread of this tokio runtime: \
                               use the asynchronous method, or a thread outside of the runtime";
                Err(Error::new(ErrorKind::WouldDeadlock, context))
            }
            _ => Ok(tokio::task::block_in_place(|| block_on(operation))),
        };
    }
    Ok(block_on(operation))
}
