//! A future that stays in the process that made it.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::generation::generation;

/// Ends with `None` in any other process, and is forgotten there instead of dropped.
///
/// What would wake an inherited future is its parent's: a runtime's driver, a task, a queue of waiters. Polled in a
/// child it would wait for ever, or take a lock that no thread will open; dropped there it might do the same on its way
/// out.
pub(crate) struct ProcessBound<F: ?Sized> {
    generation: u64,
    /// Taken by the drop.
    future: Option<Pin<Box<F>>>,
}

impl<F: Future + ?Sized> ProcessBound<F> {
    #[inline]
    pub(crate) fn new(future: Pin<Box<F>>) -> ProcessBound<F> {
        ProcessBound { generation: generation(), future: Some(future) }
    }

    /// The future, in the process that made it.
    #[inline]
    pub(crate) fn get(&mut self) -> Option<&mut Pin<Box<F>>> {
        if self.generation == generation() { self.future.as_mut() } else { None }
    }
}

impl<F: Future + ?Sized> Future for ProcessBound<F> {
    type Output = Option<F::Output>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        match self.get() {
            Some(future) => future.as_mut().poll(cx).map(Some),
            None => Poll::Ready(None),
        }
    }
}

impl<F: ?Sized> Drop for ProcessBound<F> {
    #[inline]
    fn drop(&mut self) {
        if self.generation != generation() {
            mem::forget(self.future.take());
        }
    }
}
