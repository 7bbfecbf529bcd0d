//! Waiting for a store of somebody else's.
//!
//! The stores of this crate wait inline where they are told to, so that their futures are ready at the first poll. A store
//! that suspends all the same, called through the blocking API, is waited for here: by parking the thread, on a
//! multi-thread runtime after telling tokio so. On the thread of a current-thread runtime that would wait for itself.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::Result;
use crate::net::is_inline;
use crate::sync::block_on;

/// A store's future, which does not suspend where the blocking API is at work.
#[inline]
pub(super) fn settled<F: Future + Unpin>(future: F) -> Settled<F> {
    Settled { future }
}

pub(super) struct Settled<F> {
    future: F,
}

impl<F: Future + Unpin> Future for Settled<F> {
    type Output = Result<F::Output>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<F::Output>> {
        match Pin::new(&mut self.future).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if is_inline() => Poll::Ready(wait_for(&mut self.future)),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cold]
#[cfg_attr(not(feature = "tokio"), expect(clippy::unnecessary_wraps))]
fn wait_for<F: Future + Unpin>(future: &mut F) -> Result<F::Output> {
    #[cfg(feature = "tokio")]
    if let Ok(handle) = tokio::runtime::Handle::try_current() {
        use crate::error::{Error, ErrorKind};
        use tokio::runtime::RuntimeFlavor;

        return match handle.runtime_flavor() {
            RuntimeFlavor::CurrentThread => {
                let context = "the store suspends, and waiting for it would block the only thread of this tokio runtime: \
                               use the asynchronous method, or a thread outside of the runtime";
                Err(Error::new(ErrorKind::WouldDeadlock, context))
            }
            _ => Ok(tokio::task::block_in_place(|| block_on(future))),
        };
    }
    Ok(block_on(future))
}
