//! Background tasks of a cache in this process, and waiting for their end.

use std::collections::HashMap;
#[cfg(feature = "tokio")]
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

#[cfg(feature = "tokio")]
use super::fork_guarded;
use super::{Cache, wait_clock};
use crate::error::{Error, ErrorKind, Result};
use crate::execution::{Execution, execution};
use crate::lifecycle::generation;
use crate::sync::{Lock, block_until};

/// The background tasks of one process.
#[derive(Debug)]
pub(super) struct Background {
    state: Lock<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    /// Wakers by ticket, so that a cancelled wait can remove its own.
    waiting: HashMap<u64, Waker>,
    next_ticket: u64,
}

/// The guard of a running task.
#[derive(Debug)]
#[cfg(feature = "tokio")]
pub(super) struct Running {
    background: Arc<Background>,
    generation: u64,
}

impl Cache {
    /// Waits until all background tasks of this cache in this process have ended: loads and refreshes of
    /// [`fetch_detached`](Cache::fetch_detached), and releases of leases and locks whose holders were dropped. Call it
    /// at the end of a process, before its runtime is shut down, which would cancel the tasks.
    ///
    /// The cache can still be used, and tasks that begin in the meantime are waited for as well. Tasks of handles of
    /// all namespaces count. An operation whose caller waits for it, such as a [`fetch`](Cache::fetch), is not a
    /// background task.
    ///
    /// Outside tokio there are no background tasks, and a forked child has none of its parent's: it returns at once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) if a task has not ended `within` this time.
    /// [`ErrorKind::WouldDeadlock`](crate::ErrorKind::WouldDeadlock) through the blocking API on the only thread of a
    /// runtime, if there is a task to wait for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends only the wait.
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let expiry = Expiry::after(Duration::from_secs(60)).stale_for(Duration::from_secs(3_600));
    /// cache.set("price", &100, expiry).await?;
    /// cache.expire("price").await?;
    /// let old = cache.fetch_detached("price", expiry, async || Ok::<_, std::io::Error>(200)).await;
    /// assert_eq!(old.unwrap(), 100);
    ///
    /// cache.close(Duration::from_secs(5)).await?;
    /// assert_eq!(cache.get("price").await?, Some(200));
    /// # Ok::<(), prefork_cache::Error>(()) }).unwrap();
    /// ```
    pub async fn close(&self, within: Duration) -> Result<()> {
        let background = &self.local().background;
        let ended = self.counted(background.ended(within).await)?;
        if ended {
            return Ok(());
        }
        let context = format!(
            "closing the cache {:?}: {} tasks in the background have not ended within {within:?}",
            self.name(),
            background.state.lock().running
        );
        self.counted(Err(Error::new(ErrorKind::Timeout, context)))
    }
}

impl Background {
    pub(super) fn new() -> Arc<Background> {
        Arc::new(Background { state: Lock::new("background", State::default()) })
    }

    #[cfg(feature = "tokio")]
    #[cfg(feature = "tokio")]
    pub(super) fn begin(self: &Arc<Background>) -> Running {
        self.state.lock().running += 1;
        Running { background: Arc::clone(self), generation: generation() }
    }

    /// Returns whether all tasks have ended in time.
    async fn ended(&self, within: Duration) -> Result<bool> {
        let mut wait = Wait { background: self, generation: generation(), ticket: None };
        if wait.is_over() {
            return Ok(true);
        }
        let deadline = wait_clock::now() + within.min(Duration::from_secs(365 * 24 * 60 * 60));
        match execution() {
            Ok(Execution::Inline) | Err(_) => wait.block(deadline),
            #[cfg(feature = "tokio")]
            Ok(Execution::Tokio(_)) => {
                let ended = tokio::time::timeout_at(deadline.into(), poll_fn(|cx| wait.poll(cx)));
                Ok(fork_guarded(Box::pin(ended)).await?.is_ok())
            }
        }
    }
}

#[cfg(feature = "tokio")]
impl Drop for Running {
    fn drop(&mut self) {
        if self.generation != generation() {
            return;
        }
        let waiting = {
            let mut state = self.background.state.lock();
            state.running -= 1;
            if state.running == 0 { std::mem::take(&mut state.waiting) } else { HashMap::new() }
        };
        waiting.into_values().for_each(Waker::wake);
    }
}

struct Wait<'a> {
    background: &'a Background,
    generation: u64,
    ticket: Option<u64>,
}

impl Wait<'_> {
    /// Checks the generation first: a child has no tasks here, and a vanished thread may hold the lock.
    fn is_over(&self) -> bool {
        self.generation != generation() || self.background.state.lock().running == 0
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over() {
            return Poll::Ready(());
        }
        let mut state = self.background.state.lock();
        if state.running == 0 {
            return Poll::Ready(());
        }
        let ticket = *self.ticket.get_or_insert_with(|| {
            state.next_ticket += 1;
            state.next_ticket
        });
        state.waiting.insert(ticket, cx.waker().clone());
        Poll::Pending
    }

    /// Waits by blocking this thread, unless the tasks need it.
    fn block(&mut self, deadline: Instant) -> Result<bool> {
        let mut wait = || block_until(Some(deadline), |cx| self.poll(cx)).is_some();
        #[cfg(feature = "tokio")]
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            use tokio::runtime::RuntimeFlavor;

            return match handle.runtime_flavor() {
                RuntimeFlavor::CurrentThread => {
                    let context = "closing a cache would block the only thread of this tokio runtime, which its tasks in the \
                                   background need: use the asynchronous method, or a thread outside of the runtime";
                    Err(Error::new(ErrorKind::WouldDeadlock, context))
                }
                _ => Ok(tokio::task::block_in_place(wait)),
            };
        }
        Ok(wait())
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket
            && self.generation == generation()
        {
            self.background.state.lock().waiting.remove(&ticket);
        }
    }
}
