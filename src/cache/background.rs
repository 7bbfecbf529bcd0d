//! What this process does for a cache in the background, and the wait for its end.

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

/// The tasks of one process.
#[derive(Debug)]
pub(super) struct Background {
    state: Lock<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    /// By ticket: a wait that is given up leaves nothing behind.
    waiting: HashMap<u64, Waker>,
    next_ticket: u64,
}

/// A task, until this is dropped.
#[derive(Debug)]
#[cfg(feature = "tokio")]
pub(super) struct Running {
    background: Arc<Background>,
    generation: u64,
}

impl Cache {
    /// Waits until all that this process does for this cache in the background has ended: loads and refreshes of
    /// [`fetch_detached`](Cache::fetch_detached), and releases of leases and locks whose holders were dropped. For the
    /// end of a process, before its runtime is shut down, which would cut them off. The cache can still be used, and what
    /// is begun meanwhile is waited for as well. Handles of other namespaces end together; what their callers themselves
    /// are waiting for, a [`fetch`](Cache::fetch), is no background.
    ///
    /// Outside of tokio there is no background, and in a forked child none of its parent's: it returns at once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) if something has not ended `within` this time.
    /// [`ErrorKind::WouldDeadlock`](crate::ErrorKind::WouldDeadlock) through the blocking API on the only thread of a
    /// runtime, if there is something to wait for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the wait, and nothing else.
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

    /// Whether all has ended in time.
    async fn ended(&self, within: Duration) -> Result<bool> {
        let mut wait = Wait { background: self, generation: generation(), ticket: None };
        if wait.is_over() {
            return Ok(true);
        }
        let deadline = wait_clock::now() + within.min(Duration::from_secs(365 * 24 * 60 * 60));
        match execution() {
            Ok(Execution::Inline) | Err(_) => wait.here(deadline),
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
    /// In a child there is nothing of its own, and the lock may be held by a vanished thread.
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

    /// Blocks this thread, if that keeps nobody from ending.
    fn here(&mut self, deadline: Instant) -> Result<bool> {
        let mut block = || block_until(Some(deadline), |cx| self.poll(cx)).is_some();
        #[cfg(feature = "tokio")]
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            use tokio::runtime::RuntimeFlavor;

            return match handle.runtime_flavor() {
                RuntimeFlavor::CurrentThread => {
                    let context = "closing a cache would block the only thread of this tokio runtime, which its tasks in the \
                                   background need: use the asynchronous method, or a thread outside of the runtime";
                    Err(Error::new(ErrorKind::WouldDeadlock, context))
                }
                _ => Ok(tokio::task::block_in_place(block)),
            };
        }
        Ok(block())
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
