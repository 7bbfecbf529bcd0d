//! The execution mode of an operation: inline on the calling thread, or inside a tokio runtime.
//!
//! Each operation has one implementation. How its waits behave depends on where it is polled:
//!
//! | polled | waits |
//! | --- | --- |
//! | inside a tokio runtime | are asynchronous |
//! | outside of a runtime, or within [`inline`] (the blocking API) | block; the future is ready at its first poll |
//! | within [`in_slice`] | block until the slice ends; then the future is pending, and continues at its next poll |

use std::cell::Cell;
use std::future::poll_fn;
use std::task::Poll;
use std::thread::{self, LocalKey};
use std::time::{Duration, Instant};

use crate::error::Result;
#[cfg(feature = "tokio")]
use crate::error::{Error, ErrorKind};
#[cfg(feature = "tokio")]
use crate::lifecycle::ProcessBound;
#[cfg(feature = "tokio")]
use crate::lifecycle::runtime::{self, RuntimeId};

/// How the operation that is being polled waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Execution {
    /// Blocking, on the calling thread.
    Inline,
    /// On this tokio runtime.
    #[cfg(feature = "tokio")]
    Tokio(RuntimeId),
}

/// The longest timeout. A longer one might overflow an [`Instant`].
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The execution mode that a thread was set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ThreadMode {
    /// Not set: a tokio runtime is used if there is one.
    Detected,
    Inline,
    /// Inline, and waits end at this time.
    InSlice(Instant),
}

thread_local! {
    static THREAD_MODE: Cell<ThreadMode> = const { Cell::new(ThreadMode::Detected) };
    /// The timeout of exchanges, instead of the store's.
    static TIMEOUT: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Returns the execution mode of an operation that is polled on this thread now.
///
/// # Errors
///
/// [`ErrorKind::Forked`] in a tokio runtime that was inherited through a fork: its epoll instance is the parent's.
#[inline]
#[cfg_attr(not(feature = "tokio"), expect(clippy::unnecessary_wraps))]
pub(crate) fn execution() -> Result<Execution> {
    if is_inline() {
        return Ok(Execution::Inline);
    }
    #[cfg(feature = "tokio")]
    match runtime::current() {
        Ok(Some(id)) => return Ok(Execution::Tokio(id)),
        Ok(None) => {}
        Err(runtime::Inherited) => {
            let context = "this tokio runtime was inherited through a fork: build a new one in the child, or use the blocking API";
            return Err(Error::new(ErrorKind::Forked, context));
        }
    }
    Ok(Execution::Inline)
}

/// Waits for the duration, in the current execution mode.
///
/// # Errors
///
/// As [`execution`], and [`ErrorKind::Forked`] in a process that was forked during the wait: an inherited timer never
/// fires.
pub(crate) async fn pause(pause: Duration) -> Result<()> {
    match execution()? {
        Execution::Inline => sleep(pause).await,
        #[cfg(feature = "tokio")]
        Execution::Tokio(_) => {
            let paused = ProcessBound::new(Box::pin(tokio::time::sleep(pause))).await;
            return paused.ok_or_else(Error::begun_by_parent);
        }
    }
    Ok(())
}

/// Waits for the duration, and blocks this thread in every execution mode.
pub(crate) async fn sleep(pause: Duration) {
    let sleep = |until: Instant| {
        thread::sleep(until.saturating_duration_since(Instant::now()));
        None::<()>
    };
    blocking(Instant::now() + pause, sleep).await;
}

/// Waits until `deadline`, blocking this thread. `wait` is called with the time until which it may block, and returns
/// `None` if the awaited event has not occurred by then. In slices it is called once for each slice. Returns `None`
/// once the deadline has passed.
pub(crate) async fn blocking<T>(deadline: Instant, mut wait: impl FnMut(Instant) -> Option<T>) -> Option<T> {
    poll_fn(|_| {
        let until = wait_end(deadline);
        match wait(until) {
            None if until < deadline => Poll::Pending,
            result => Poll::Ready(result),
        }
    })
    .await
}

/// Returns the time until which a wait with this deadline may block: at most until the end of the slice.
#[inline]
pub(crate) fn wait_end(deadline: Instant) -> Instant {
    slice_end().map_or(deadline, |end| end.min(deadline))
}

/// Returns the end of the slice within [`in_slice`].
#[inline]
pub(crate) fn slice_end() -> Option<Instant> {
    match THREAD_MODE.get() {
        ThreadMode::InSlice(end) => Some(end),
        ThreadMode::Detected | ThreadMode::Inline => None,
    }
}

/// Returns whether a slice is over, so that a pending future is pending for that reason.
#[cfg(feature = "__servers")]
pub(crate) fn is_slice_over() -> bool {
    slice_end().is_some_and(|end| Instant::now() >= end)
}

/// Returns whether this is called within [`inline`] or [`in_slice`].
#[inline]
pub(crate) fn is_inline() -> bool {
    THREAD_MODE.get() != ThreadMode::Detected
}

/// Returns whether an operation that is polled on this thread now may suspend.
#[cfg(feature = "conformance")]
pub(crate) fn suspends() -> bool {
    !matches!(execution(), Ok(Execution::Inline))
}

/// Runs `work`; every operation that it polls runs inline on this thread.
#[inline]
pub(crate) fn inline<R>(work: impl FnOnce() -> R) -> R {
    with(&THREAD_MODE, ThreadMode::Inline, work)
}

/// Runs `work` as [`inline`] does, but operations that still wait at `end` suspend.
pub(crate) fn in_slice<R>(end: Instant, work: impl FnOnce() -> R) -> R {
    with(&THREAD_MODE, ThreadMode::InSlice(end), work)
}

/// Runs a user's code outside of the mode set by [`inline`] or [`in_slice`].
pub(crate) fn outside_inline<R>(work: impl FnOnce() -> R) -> R {
    with(&THREAD_MODE, ThreadMode::Detected, work)
}

/// Runs `work`; exchanges that it begins have this timeout instead of the store's.
pub(crate) fn within<R>(timeout: Duration, work: impl FnOnce() -> R) -> R {
    with(&TIMEOUT, Some(timeout.min(MAX_TIMEOUT)), work)
}

/// Runs a future; exchanges that it begins have this timeout, but at most the time that is left until `deadline`.
#[cfg(feature = "redis")]
pub(crate) async fn until<F: std::future::Future>(deadline: Instant, timeout: Duration, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let left = || deadline.saturating_duration_since(Instant::now()).min(timeout);
    poll_fn(|cx| within(left(), || future.as_mut().poll(cx))).await
}

/// Returns the timeout of an exchange that begins on this thread now.
#[inline]
#[cfg(feature = "__servers")]
pub(crate) fn exchange_timeout(default: Duration) -> Duration {
    TIMEOUT.get().unwrap_or(default)
}

/// Sets a thread-local cell to `value` while `work` runs, and restores it afterwards.
#[inline]
fn with<T: Copy, R>(cell: &'static LocalKey<Cell<T>>, value: T, work: impl FnOnce() -> R) -> R {
    struct Restore<T: Copy + 'static>(&'static LocalKey<Cell<T>>, T);
    impl<T: Copy> Drop for Restore<T> {
        #[inline]
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(cell, cell.replace(value));
    work()
}
