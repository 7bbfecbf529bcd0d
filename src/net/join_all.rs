//! Scatter-gather: exchanges with several servers at the same time.
//!
//! In a runtime, futures that are polled together wait together. A thread without a runtime can wait for one socket at
//! a time, but the servers can work at the same time. Each exchange of an [`ExchangeGroup`] sends its request and is
//! *set aside* while the others send theirs. Then the replies are read, one server after the other.
//!
//! An exchange that is set aside holds a permit of a pool. So an exchange that must wait for a permit, or dial, lets
//! the others finish first: a thread that waits for one server does not hold permits of other servers.
//!
//! The deadline of an exchange goes on while it is set aside, so the timeouts of several hanging servers do not add up.
//! But if its reply has begun to arrive meanwhile, its deadline is extended by the time that it was set aside.
//! Servers that have failed are dialled last, so that they do not take the time that the others need.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use crate::execution::{Execution, execution, is_slice_over};

/// The exchanges of one call of [`join_all`].
#[derive(Debug, Default)]
pub(crate) struct ExchangeGroup {
    set_aside: AtomicUsize,
    deadline: Option<Instant>,
}

impl ExchangeGroup {
    /// Creates a group. After its deadline no server is dialled any more, so that several servers which accept
    /// connections and do not respond cost one wait in total, not one each.
    pub(crate) fn until(deadline: Instant) -> ExchangeGroup {
        ExchangeGroup { deadline: Some(deadline), ..ExchangeGroup::default() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Suspends the exchange once, so that the others send before its reply is read.
    pub(super) async fn set_aside(&self) {
        self.set_aside.fetch_add(1, Ordering::Relaxed);
        suspended_once().await;
        self.set_aside.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits until no exchange of the group is set aside: each has finished, or waits here as well.
    pub(super) async fn let_finish(&self) {
        while self.set_aside.load(Ordering::Relaxed) > 0 {
            suspended_once().await;
        }
    }

    /// Waits until no other exchange of the group is set aside or dials: the servers that have not failed are dialled
    /// before those that have, which may need all the time until the deadline.
    pub(super) async fn let_dial(&self) {
        loop {
            suspended_once().await;
            if self.set_aside.load(Ordering::Relaxed) == 0 {
                return;
            }
            self.let_finish().await;
        }
    }
}

/// Polls all futures in turn until each is ready, and returns their outputs in order. Inline, this future is ready at
/// its first poll, unless a slice ends: the futures that suspend have only been set aside, and are polled again at
/// once.
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
        Running::Pending(_) => unreachable!("every future was polled until it was ready"),
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
