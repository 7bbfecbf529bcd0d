//! A server of which nothing good is known is dialled by one caller at a time.
//!
//! Else a process's threads, or those that were past the breaker when the first of them failed, would all dial a server
//! that closes what it accepts. Whoever dials has a [`Permit`] until the server has greeted; the others wait for that.
//! Once a server has answered a request they go ahead. Whose wait is over fails, unless the permit was held for as long:
//! what holds it may be a task of a runtime that is not polled. Then one of those that wait has the permit instead.
//!
//! Callers that block and drivers of pipelines have a permit each: a thread that blocked for a task of its own runtime
//! would wait for itself.

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

#[derive(Debug, Default)]
pub(super) struct DialLimit {
    /// The generation in which the server has answered, and has not failed since.
    proven_in: AtomicU64,
    inline: Line,
    #[cfg(feature = "tokio")]
    tokio: Line,
}

#[derive(Debug, Default)]
struct Line(ProcessLocal<Lock<State>>);

#[derive(Debug, Default)]
struct State {
    /// Since when somebody has the permit.
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
    /// A permit to dial, where one is needed.
    pub(super) async fn permit(
        self: &Arc<DialLimit>,
        execution: Execution,
        patience: Duration,
    ) -> Result<Option<Permit>, NoCheckout> {
        if self.is_proven() {
            return Ok(None);
        }
        let line = self.line(execution).get();
        let deadline = Instant::now() + patience;
        let mut turn = Waiter::new(line, deadline);
        let poll = |turn: &mut Waiter<'_, State>, cx: &mut Context<'_>| {
            if turn.is_inherited() {
                return Poll::Ready(Err(NoCheckout::Forked));
            }
            let mut state = line.lock();
            if self.is_proven() {
                return Poll::Ready(Ok(None));
            }
            let now = Instant::now();
            if state.taken.is_some_and(|since| now < since + patience) {
                turn.wait(&mut state, cx.waker());
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
                    let permit = block_until(Some(until), |cx| poll(&mut turn, cx));
                    turn.step_out_unless(permit.is_some());
                    permit
                });
                permit.await.unwrap_or(Err(NoCheckout::Exhausted))
            }
            #[cfg(feature = "tokio")]
            Execution::Tokio(_) => {
                let permit = tokio::time::timeout_at(deadline.into(), poll_fn(|cx| poll(&mut turn, cx))).await;
                permit.unwrap_or(Err(NoCheckout::Exhausted))
            }
        }
    }

    /// The server has answered: everybody may dial.
    #[inline]
    pub(super) fn succeeded(&self) {
        if !self.is_proven() {
            self.prove();
        }
    }

    #[cold]
    fn prove(&self) {
        for line in self.lines() {
            let waiting = {
                let mut state = line.get().lock();
                self.proven_in.store(generation(), Ordering::Relaxed);
                state.waiters.take(usize::MAX)
            };
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Something has failed.
    pub(super) fn doubt(&self) {
        self.proven_in.store(0, Ordering::Relaxed);
    }

    #[inline]
    fn is_proven(&self) -> bool {
        self.proven_in.load(Ordering::Relaxed) == generation()
    }

    fn line(&self, execution: Execution) -> &Line {
        match execution {
            Execution::Inline => &self.inline,
            #[cfg(feature = "tokio")]
            Execution::Tokio(_) => &self.tokio,
        }
    }

    fn lines(&self) -> impl Iterator<Item = &Line> {
        #[cfg(feature = "tokio")]
        return [&self.inline, &self.tokio].into_iter();
        #[cfg(not(feature = "tokio"))]
        [&self.inline].into_iter()
    }
}

impl Line {
    fn get(&self) -> &Lock<State> {
        self.0.get_or_init(|| Lock::new("dial_limit", State::default()))
    }
}

/// Leave to dial, for one at a time.
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
            let mut state = self.dial_limit.line(self.execution).get().lock();
            // Another one may have it by now.
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
    fn one_that_holds_it_for_too_long_has_it_no_more() {
        let dial_limit = Arc::<DialLimit>::default();
        let is_taken = || dial_limit.inline.get().lock().taken.is_some();
        let never_polled = permit(&dial_limit);
        let next = permit(&dial_limit);
        drop(never_polled);
        assert!(is_taken(), "it is the next one's");
        drop(next);
        assert!(!is_taken());
    }
}
