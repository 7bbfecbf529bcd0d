//! Whether an operation runs inline on this thread, or in a tokio runtime.
//!
//! There is one implementation of each operation. Inside a tokio runtime its waits are asynchronous. Outside of one,
//! and on a thread that [`inline`] has marked (the blocking API does), they block, and the future is ready at its first
//! poll; on one that [`in_slice`] has marked they block until the slice is over, and go on where they were at the next
//! poll.

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

/// The longest timeout: a moment that is too far away is none.
pub(crate) const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What a thread is marked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    None,
    Inline,
    /// Inline, and no wait goes on for longer than until then.
    InSlice(Instant),
}

thread_local! {
    static MARK: Cell<Mark> = const { Cell::new(Mark::None) };
    static TIMEOUT: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// How an operation started here and now waits.
///
/// # Errors
///
/// [`ErrorKind::Forked`] in a runtime that came through a fork: its epoll instance is the parent's.
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

/// Waits for this long, in the way that an operation polled here and now waits.
///
/// # Errors
///
/// As [`execution`], and in a process that was forked meanwhile: an inherited timer never fires.
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

/// Blocks this thread, whatever drives the operation.
pub(crate) async fn sleep(pause: Duration) {
    let sleep = |until: Instant| {
        thread::sleep(until.saturating_duration_since(Instant::now()));
        None::<()>
    };
    blocking(Instant::now() + pause, sleep).await;
}

/// A wait that blocks this thread: `wait` is called with the time until which it may, and returns `None` if nothing has
/// come by then. In slices it is called once in each. `None` once the deadline has passed.
pub(crate) async fn blocking<T>(deadline: Instant, mut wait: impl FnMut(Instant) -> Option<T>) -> Option<T> {
    poll_fn(|_| {
        let until = wait_end(deadline);
        match wait(until) {
            None if until < deadline => Poll::Pending,
            ended => Poll::Ready(ended),
        }
    })
    .await
}

/// Until when a wait with this deadline may block.
#[inline]
pub(crate) fn wait_end(deadline: Instant) -> Instant {
    slice_end().map_or(deadline, |end| end.min(deadline))
}

/// The end of the slice, on a thread that is marked by [`in_slice`].
#[inline]
pub(crate) fn slice_end() -> Option<Instant> {
    match MARK.get() {
        Mark::InSlice(end) => Some(end),
        Mark::None | Mark::Inline => None,
    }
}

/// Whether this thread is marked by [`in_slice`], and the slice is over: what suspends now does so for that.
#[cfg(feature = "__servers")]
pub(crate) fn is_slice_over() -> bool {
    slice_end().is_some_and(|end| Instant::now() >= end)
}

/// Whether this thread is marked by [`inline`] or [`in_slice`].
#[inline]
pub(crate) fn is_inline() -> bool {
    MARK.get() != Mark::None
}

/// Whether an operation that is polled here and now may suspend.
#[cfg(feature = "conformance")]
pub(crate) fn suspends() -> bool {
    !matches!(execution(), Ok(Execution::Inline))
}

/// Has every operation in `work` run inline on this thread.
#[inline]
pub(crate) fn inline<R>(work: impl FnOnce() -> R) -> R {
    with(&MARK, Mark::Inline, work)
}

/// The same, and lets operations suspend whose waits are not over by then.
pub(crate) fn in_slice<R>(end: Instant, work: impl FnOnce() -> R) -> R {
    with(&MARK, Mark::InSlice(end), work)
}

/// Lifts the mark of [`inline`] while a user's code runs.
pub(crate) fn lifted<R>(work: impl FnOnce() -> R) -> R {
    with(&MARK, Mark::None, work)
}

/// Has the exchanges that `work` begins take at most so long, instead of the store's own timeout.
pub(crate) fn within<R>(timeout: Duration, work: impl FnOnce() -> R) -> R {
    with(&TIMEOUT, Some(timeout.min(LONGEST)), work)
}

/// Has the exchanges that a future begins take at most so long, and at most what is left until a moment.
#[cfg(feature = "redis")]
pub(crate) async fn until<F: std::future::Future>(moment: Instant, timeout: Duration, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let left = || moment.saturating_duration_since(Instant::now()).min(timeout);
    poll_fn(|cx| within(left(), || future.as_mut().poll(cx))).await
}

/// How long an exchange that begins here and now may take.
#[inline]
#[cfg(feature = "__servers")]
pub(crate) fn exchange_timeout(default: Duration) -> Duration {
    TIMEOUT.get().unwrap_or(default)
}

/// Has a thread's cell hold a value while `work` runs.
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
