//! A limit on dials: an unproven server is dialled by one caller at a time.
//!
//! A server is *proven* once it has responded to a request in this process, until something fails. Without the limit,
//! all threads that had passed the circuit breaker would dial a server that accepts connections and closes them.
//!
//! A caller that dials holds the [`Permit`] until the server has greeted it. The others wait for the permit, or until
//! the server is proven, with a timeout. If the permit has been held for as long as that timeout, one of the waiting
//! callers takes it over: its holder may be a task of a runtime that is not polled.
//!
//! Blocking callers and drivers of pipelines have separate permits. Otherwise a thread that blocks inside a runtime
//! could wait for a task of that same runtime, which cannot run meanwhile.

#[cfg(feature = "tokio")]
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::pool::NoCheckout;
use super::wait_queue::{Limited, WaitQueue, Waiter};
use crate::execution::{Execution, blocking};
use crate::lifecycle::{ProcessLocal, generation};
use crate::sync::{Lock, block_until};

/// The permits to dial one server.
#[derive(Debug, Default)]
pub(super) struct DialLimit {
    /// The generation in which the server is proven; 0 if it is not.
    proven_in: AtomicU64,
    inline: PermitQueue,
    #[cfg(feature = "tokio")]
    tokio: PermitQueue,
}

#[derive(Debug, Default)]
struct PermitQueue(ProcessLocal<Lock<State>>);

#[derive(Debug, Default)]
struct State {
    /// When the permit was taken, while it is held.
    taken: Option<Instant>,
    waiters: WaitQueue,
}

impl Limited for State {
    fn room(&self) -> usize {
        usize::from(self.taken.is_none())
    }

    fn waiters(&mut self) -> &mut WaitQueue {
        &mut self.waiters
    }
}

impl DialLimit {
    /// Waits for the permit to dial, at most for `timeout`. Returns `None` if the server is proven.
    pub(super) async fn permit(
        self: &Arc<DialLimit>,
        execution: Execution,
        timeout: Duration,
    ) -> Result<Option<Permit>, NoCheckout> {
        if self.is_proven() {
            return Ok(None);
        }
        let queue = self.queue(execution).get();
        let deadline = Instant::now() + timeout;
        let mut waiter = Waiter::new(queue, deadline);
        let poll = |waiter: &mut Waiter<'_, State>, cx: &mut Context<'_>| {
            if waiter.is_inherited() {
                return Poll::Ready(Err(NoCheckout::Forked));
            }
            let mut state = queue.lock();
            if self.is_proven() {
                return Poll::Ready(Ok(None));
            }
            let now = Instant::now();
            if state.taken.is_some_and(|since| now < since + timeout) {
                waiter.wait(&mut state, cx.waker());
                return Poll::Pending;
            }
            state.taken = Some(now);
            Poll::Ready(Ok(Some(Permit {
                dial_limit: Arc::clone(self),
                execution,
                generation: generation(),
                since: now,
            })))
        };
        match execution {
            Execution::Inline => {
                let permit = blocking(deadline, |until| {
                    let permit = block_until(Some(until), |cx| poll(&mut waiter, cx));
                    waiter.step_out_unless(permit.is_some());
                    permit
                });
                permit.await.unwrap_or(Err(NoCheckout::Exhausted))
            }
            #[cfg(feature = "tokio")]
            Execution::Tokio(_) => {
                let permit = tokio::time::timeout_at(deadline.into(), poll_fn(|cx| poll(&mut waiter, cx))).await;
                permit.unwrap_or(Err(NoCheckout::Exhausted))
            }
        }
    }

    /// Records that the server is proven: all callers may dial.
    #[inline]
    pub(super) fn succeeded(&self) {
        if !self.is_proven() {
            self.mark_proven();
        }
    }

    #[cold]
    fn mark_proven(&self) {
        for queue in self.queues() {
            let waiting = {
                let mut state = queue.get().lock();
                self.proven_in.store(generation(), Ordering::Relaxed);
                state.waiters.take(usize::MAX)
            };
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Records a failure: the server is not proven any more.
    pub(super) fn mark_unproven(&self) {
        self.proven_in.store(0, Ordering::Relaxed);
    }

    #[inline]
    fn is_proven(&self) -> bool {
        self.proven_in.load(Ordering::Relaxed) == generation()
    }

    fn queue(&self, execution: Execution) -> &PermitQueue {
        match execution {
            Execution::Inline => &self.inline,
            #[cfg(feature = "tokio")]
            Execution::Tokio(_) => &self.tokio,
        }
    }

    fn queues(&self) -> impl Iterator<Item = &PermitQueue> {
        #[cfg(feature = "tokio")]
        return [&self.inline, &self.tokio].into_iter();
        #[cfg(not(feature = "tokio"))]
        [&self.inline].into_iter()
    }
}

impl PermitQueue {
    fn get(&self) -> &Lock<State> {
        self.0.get_or_init(|| Lock::new("dial_limit", State::default()))
    }
}

/// The permit to dial an unproven server.
#[derive(Debug)]
pub(super) struct Permit {
    dial_limit: Arc<DialLimit>,
    execution: Execution,
    generation: u64,
    since: Instant,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.generation != generation() {
            return;
        }
        let next = {
            let mut state = self.dial_limit.queue(self.execution).get().lock();
            // Another caller may have taken the permit over.
            if state.taken == Some(self.since) {
                state.taken = None;
            }
            state.next()
        };
        next.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use super::{DialLimit, Execution, Permit};

    fn permit(dial_limit: &Arc<DialLimit>) -> Permit {
        let permit = pin!(dial_limit.permit(Execution::Inline, Duration::from_millis(10)));
        match permit.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Some(permit))) => permit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_permit_that_is_held_for_too_long_is_taken_over() {
        let dial_limit = Arc::<DialLimit>::default();
        let is_taken = || dial_limit.inline.get().lock().taken.is_some();
        let never_polled = permit(&dial_limit);
        let next = permit(&dial_limit);
        drop(never_polled);
        assert!(is_taken(), "the next caller holds it");
        drop(next);
        assert!(!is_taken());
    }
}
