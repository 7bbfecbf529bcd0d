//! Operations that return to the caller at intervals.

use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::execution::{in_slice, inline};
use crate::lifecycle::ProcessBound;
use crate::sync::block_until;

/// An operation that runs inline on the calling thread, as through [`Cache::blocking`](crate::Cache::blocking), in
/// slices of time. Between two calls of [`run_for`](Resumable::run_for) a host can handle its signals, and let its
/// other threads take an interpreter's lock.
///
/// Between calls the operation does not progress: it has no thread and no runtime of its own. Its exchange with a
/// server stays open, and the next call goes on waiting for it. The time between calls counts towards the store's
/// timeouts, but a reply that has arrived in the meantime is used. Only name resolution cannot be interrupted: a lookup
/// takes its full time. Use a numeric address where that matters.
///
/// Dropping it before it is done cancels the operation, like dropping any future of this crate: it has taken effect or
/// not, and later operations are not affected. In a child of the process that began it, it does nothing.
///
/// ```
/// use prefork_cache::{Cache, Resumable, stores::MemoryStore};
/// use std::time::Duration;
///
/// let cache = Cache::builder(MemoryStore::new()).build();
/// cache.blocking().set_raw("motd", "hello", Duration::from_secs(60))?;
///
/// let mut get = Resumable::new(cache.get_raw("motd"));
/// let motd = loop {
///     if let Some(done) = get.run_for(Duration::from_millis(100)) {
///         break done??;
///     }
///     // Handle signals here.
/// };
/// assert_eq!(motd.as_deref(), Some(&b"hello"[..]));
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[must_use = "it does nothing unless it is run"]
pub struct Resumable<'a, T> {
    /// `None` only during the drop.
    operation: Option<ProcessBound<dyn Future<Output = T> + Send + 'a>>,
}

impl<'a, T> Resumable<'a, T> {
    /// Wraps a future of this crate. The operation does not begin yet.
    pub fn new(operation: impl Future<Output = T> + Send + 'a) -> Resumable<'a, T> {
        Resumable { operation: Some(ProcessBound::new(Box::pin(operation))) }
    }

    /// Begins or continues the operation, for about this long. Returns `None` while it is not done, and then its
    /// outcome, once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Forked`](crate::ErrorKind::Forked) in a child of the process that began it.
    ///
    /// # Panics
    ///
    /// If it has already returned the outcome.
    pub fn run_for(&mut self, time: Duration) -> Option<Result<T>> {
        let operation = self.operation.as_mut().expect("there is an operation until the drop");
        let Some(operation) = operation.get() else { return Some(Err(Error::begun_by_parent())) };
        let now = Instant::now();
        let end = now.checked_add(time).unwrap_or(now);
        // A future of another crate, a loader for example, may suspend before the slice is over.
        in_slice(end, || block_until(Some(end), |cx| operation.as_mut().poll(cx))).map(Ok)
    }
}

/// Runs the destructors inline as well.
impl<T> Drop for Resumable<'_, T> {
    fn drop(&mut self) {
        inline(|| drop(self.operation.take()));
    }
}

impl<T> fmt::Debug for Resumable<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumable").finish_non_exhaustive()
    }
}
