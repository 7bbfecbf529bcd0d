//! The slot in which a caller waits for its reply.

use std::future::Future;
use std::mem::{self, ManuallyDrop};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::Failure;
use crate::error::{Error, Result};
use crate::lifecycle::generation;
use crate::net::connection::Protocol;
use crate::sync::Lock;

/// The slot for the reply to a request.
pub(super) struct Slot<P: Protocol>(Lock<SlotState<P>>);

enum SlotState<P: Protocol> {
    Awaited(Waker),
    Done(Result<P::Reply, Failure>),
    Taken,
}

impl<P: Protocol> Slot<P> {
    /// Creates a slot that is awaited by the task with this waker.
    pub(super) fn new(waker: &Waker) -> Slot<P> {
        Slot(Lock::new("slot", SlotState::Awaited(waker.clone())))
    }

    /// Puts the outcome of the request in, and wakes the caller.
    pub(super) fn complete(&self, outcome: Result<P::Reply, Failure>) {
        let before = mem::replace(&mut *self.0.lock(), SlotState::Done(outcome));
        if let SlotState::Awaited(waker) = before {
            waker.wake();
        }
    }
}

/// A request that was appended: the future of its reply. Dropping it leaves the request in flight.
pub(in crate::net) struct Appended<P: Protocol> {
    generation: u64,
    /// Dropped only in the process that appended the request: it may hold a waker.
    slot: ManuallyDrop<Arc<Slot<P>>>,
}

impl<P: Protocol> Appended<P> {
    pub(super) fn new(slot: Arc<Slot<P>>) -> Appended<P> {
        Appended { generation: generation(), slot: ManuallyDrop::new(slot) }
    }
}

impl<P: Protocol> Future for Appended<P> {
    type Output = Result<P::Reply, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<P::Reply, Failure>> {
        if self.generation != generation() {
            return Poll::Ready(Err(Error::begun_by_parent().into()));
        }
        let mut state = self.slot.0.lock();
        match &*state {
            SlotState::Done(_) => {}
            SlotState::Awaited(waker) if waker.will_wake(cx.waker()) => return Poll::Pending,
            SlotState::Awaited(_) | SlotState::Taken => {
                let before = mem::replace(&mut *state, SlotState::Awaited(cx.waker().clone()));
                drop(state);
                drop(before);
                return Poll::Pending;
            }
        }
        match mem::replace(&mut *state, SlotState::Taken) {
            SlotState::Done(outcome) => Poll::Ready(outcome),
            SlotState::Taken | SlotState::Awaited(_) => unreachable!("the state was `Done` under the same lock"),
        }
    }
}

impl<P: Protocol> Drop for Appended<P> {
    #[expect(unsafe_code, reason = "in another process the slot is leaked")]
    fn drop(&mut self) {
        if self.generation == generation() {
            // SAFETY: the slot is dropped once, here, and nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.slot) };
        }
    }
}
