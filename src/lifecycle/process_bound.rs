//! A future bound to the process that created it.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::generation::generation;

/// In any other process, the future ends with `None`, and is leaked instead of dropped.
///
/// An inherited future would be woken by things of the parent: a runtime's driver, a task, a queue of waiters. Polled
/// in a child, it could wait forever, or for a lock that no thread releases. Its drop could do the same.
pub(crate) struct ProcessBound<F: ?Sized> {
    generation: u64,
    /// `None` only during the drop.
    future: Option<Pin<Box<F>>>,
}

impl<F: Future + ?Sized> ProcessBound<F> {
    #[inline]
    pub(crate) fn new(future: Pin<Box<F>>) -> ProcessBound<F> {
        ProcessBound { generation: generation(), future: Some(future) }
    }

    /// Returns the future, in the process that created it.
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
