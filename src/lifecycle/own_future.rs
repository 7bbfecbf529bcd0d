//! A future that only the process that made it polls.
//!
//! What would wake an inherited future is its parent's: a runtime's driver, a task, a queue of waiters. Polled in a child it
//! would wait for ever, or take a lock that nobody will open; dropped there, it would do the same on its way out. So in a child
//! it is an error at the next poll, and it is forgotten instead of dropped. It is on the heap, since what is pinned may be
//! forgotten only where it stays.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::generation::generation;
use crate::error::{Error, ErrorKind, Result};

pub(crate) struct OwnFuture<F> {
    generation: u64,
    /// `None` once it is done, or forgotten.
    work: Option<Pin<Box<F>>>,
}

impl<T, F: Future<Output = Result<T>>> OwnFuture<F> {
    pub(crate) fn new(work: F) -> OwnFuture<F> {
        OwnFuture { generation: generation(), work: Some(Box::pin(work)) }
    }
}

impl<T, F: Future<Output = Result<T>>> Future for OwnFuture<F> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if self.generation != generation() {
            let context = "this operation was begun by a parent process, before a fork: begin it anew";
            return Poll::Ready(Err(Error::new(ErrorKind::Forked, context)));
        }
        let work = self.work.as_mut().expect("a future is not polled again once it is ready");
        let ready = work.as_mut().poll(cx);
        // A fork may have happened in the middle of the poll: then this is for the drop to forget.
        if ready.is_ready() && self.generation == generation() {
            self.work = None;
        }
        ready
    }
}

impl<F> Drop for OwnFuture<F> {
    fn drop(&mut self) {
        if self.generation != generation() {
            std::mem::forget(self.work.take());
        }
    }
}
