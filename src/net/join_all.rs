//! Exchanges with several servers at the same time.
//!
//! In a runtime, futures that are polled together wait together. A thread without one can wait for one socket only, but
//! the servers can work meanwhile: each exchange of a [`ExchangeGroup`] sends its request and is *set aside* while the others
//! send theirs; then the replies are read, one server after the other.
//!
//! What is set aside holds a place in a pool. So whoever has to wait for such a place, or to dial, lets the others
//! finish first: a thread that waits for one server keeps nobody from another.
//!
//! Time passes for an exchange that is set aside as for any other, so servers that hang do so all at once. But one
//! whose reply has begun to arrive meanwhile is not charged for the time that the others took.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use crate::execution::{Execution, execution, is_slice_over};

/// The exchanges that are seen through by one call of [`join_all`].
#[derive(Debug, Default)]
pub(crate) struct ExchangeGroup {
    set_aside: AtomicUsize,
    deadline: Option<Instant>,
}

impl ExchangeGroup {
    /// After the deadline no server is dialled any more: those that accept and do not answer cost one wait join_all,
    /// and not one each.
    pub(crate) fn until(deadline: Instant) -> ExchangeGroup {
        ExchangeGroup { deadline: Some(deadline), ..ExchangeGroup::default() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Lets the others send before the reply is read.
    pub(super) async fn set_aside(&self) {
        self.set_aside.fetch_add(1, Ordering::Relaxed);
        suspended_once().await;
        self.set_aside.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits until none of the others is set aside: they have finished, or wait as well.
    pub(super) async fn let_finish(&self) {
        while self.set_aside.load(Ordering::Relaxed) > 0 {
            suspended_once().await;
        }
    }
}

/// Polls all of them in turn until each is ready. Inline that is so at the first poll: what suspends there has only
/// been set aside, and goes on when it is polled again, unless that is in the next slice.
pub(crate) async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| Running::Pending(Box::pin(future))).collect();
    if let Ok(Execution::Inline) = execution() {
        let inline = |cx: &mut Context<'_>| loop {
            let polled = poll_all(&mut running, cx);
            if polled.is_ready() || is_slice_over() {
                return polled;
            }
        };
        poll_fn(inline).await;
    } else {
        poll_fn(|cx| poll_all(&mut running, cx)).await;
    }
    let output = |running| match running {
        Running::Ready(output) => output,
        Running::Pending(_) => unreachable!("every one of them was polled until it was ready"),
    };
    running.into_iter().map(output).collect()
}

enum Running<F: Future> {
    Pending(Pin<Box<F>>),
    Ready(F::Output),
}

fn poll_all<F: Future>(running: &mut [Running<F>], cx: &mut Context<'_>) -> Poll<()> {
    let mut all = Poll::Ready(());
    for one in running {
        if let Running::Pending(future) = one {
            match future.as_mut().poll(cx) {
                Poll::Ready(output) => *one = Running::Ready(output),
                Poll::Pending => all = Poll::Pending,
            }
        }
    }
    all
}

/// Suspends at the first poll, and is ready at the next.
async fn suspended_once() {
    let mut suspended = false;
    poll_fn(|cx| {
        if suspended {
            return Poll::Ready(());
        }
        suspended = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
