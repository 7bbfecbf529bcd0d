//! Operations that give the calling thread back now and then.

use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::execution::{in_slice, inline};
use crate::lifecycle::ProcessBound;
use crate::sync::block_until;

/// An operation that runs inline on the calling thread, as through [`Cache::blocking`](crate::Cache::blocking), and
/// comes back before it is done if it takes long: between two calls of [`run_for`](Resumable::run_for) a host can serve
/// its signals, and let its other threads have an interpreter's lock.
///
/// Nothing of it goes on between the calls: no thread and no runtime is behind it. What it waits for is left as it is,
/// with the exchange with a server, and the wait goes on in the next call. The time in between counts towards the
/// store's timeouts, but an answer that has come meanwhile is taken. Only the resolver cannot be left: the lookup of a
/// host's name takes its own time (give the address in numbers where that matters).
///
/// Dropped before it is done, it is cancelled, as any future of this crate: it has taken effect or not, and no later
/// operation is disturbed. In a child of the process that began it, it does nothing.
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
///     // Serve signals here.
/// };
/// assert_eq!(motd.as_deref(), Some(&b"hello"[..]));
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[must_use = "it does nothing unless it is run"]
pub struct Resumable<'a, T> {
    /// Taken by the drop.
    operation: Option<ProcessBound<dyn Future<Output = T> + Send + 'a>>,
}

impl<'a, T> Resumable<'a, T> {
    /// The operation of a future of this crate, not yet begun.
    pub fn new(operation: impl Future<Output = T> + Send + 'a) -> Resumable<'a, T> {
        Resumable { operation: Some(ProcessBound::new(Box::pin(operation))) }
    }

    /// Begins the operation or goes on with it, for about so long. Returns `None` while it is not done, and its outcome
    /// once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Forked`](crate::ErrorKind::Forked) in a child of the process that began it.
    ///
    /// # Panics
    ///
    /// If it has returned the outcome before.
    pub fn run_for(&mut self, time: Duration) -> Option<Result<T>> {
        let operation = self.operation.as_mut().expect("there is an operation until the drop");
        let Some(operation) = operation.get() else { return Some(Err(Error::begun_by_parent())) };
        let now = Instant::now();
        let end = now.checked_add(time).unwrap_or(now);
        // What is not of this crate, a loader for example, may suspend before the slice is over.
        in_slice(end, || block_until(Some(end), |cx| operation.as_mut().poll(cx))).map(Ok)
    }
}

/// What it does on the way out is done inline as well.
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
