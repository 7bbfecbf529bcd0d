//! A fair queue of callers that wait for a limited resource.

use std::collections::VecDeque;
#[cfg(feature = "tokio")]
use std::mem;
use std::task::Waker;
use std::time::Instant;

use crate::lifecycle::generation;
use crate::sync::Lock;

/// A limited resource, under one lock with the queue of callers that wait for it.
pub(super) trait Limited {
    /// The number of callers that can have the resource now.
    fn room(&self) -> usize;

    fn waiters(&mut self) -> &mut WaitQueue;

    /// Takes as many callers out of the queue as can have the resource now. Their wakers are woken outside of the lock.
    fn next(&mut self) -> Vec<Waker> {
        let room = self.room();
        self.waiters().take(room)
    }
}

/// The waiting callers, in the order of their tickets.
#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    queue: VecDeque<Waiting>,
    next_ticket: u64,
    /// No deadline in the queue is before this.
    #[cfg(feature = "tokio")]
    first_deadline: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    deadline: Instant,
    waker: Waker,
}

impl WaitQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes the first callers out of the queue. A caller that is woken and finds no room waits again, at its previous
    /// position.
    #[inline]
    pub(super) fn take(&mut self, count: usize) -> Vec<Waker> {
        if self.queue.is_empty() {
            return Vec::new();
        }
        let count = count.min(self.queue.len());
        self.queue.drain(..count).map(|waiting| waiting.waker).collect()
    }

    /// Returns when [`take_late`](WaitQueue::take_late) is due.
    #[cfg(feature = "tokio")]
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.first_deadline.filter(|_| !self.queue.is_empty())
    }

    /// Takes the callers whose deadlines have passed out of the queue.
    #[cfg(feature = "tokio")]
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<Waker> {
        if self.first_deadline().is_none_or(|first| now < first) {
            return Vec::new();
        }
        let (late, waiting): (VecDeque<_>, VecDeque<_>) =
            mem::take(&mut self.queue).into_iter().partition(|waiting| waiting.deadline <= now);
        self.queue = waiting;
        self.first_deadline = self.queue.iter().map(|waiting| waiting.deadline).min();
        late.into_iter().map(|waiting| waiting.waker).collect()
    }

    fn position_of(&self, ticket: u64) -> Result<usize, usize> {
        self.queue.binary_search_by_key(&ticket, |waiting| waiting.ticket)
    }
}

/// A caller that may wait. If it is dropped after it was woken, the next caller is woken instead.
pub(super) struct Waiter<'a, S: Limited> {
    state: &'a Lock<S>,
    generation: u64,
    deadline: Instant,
    /// Its position in the order of the queue, once it has waited.
    ticket: Option<u64>,
}

impl<'a, S: Limited> Waiter<'a, S> {
    pub(super) fn new(state: &'a Lock<S>, deadline: Instant) -> Waiter<'a, S> {
        Waiter { state, generation: generation(), deadline, ticket: None }
    }

    /// Returns whether the wait began in another process.
    pub(super) fn is_inherited(&self) -> bool {
        self.generation != generation()
    }

    #[cfg(feature = "tokio")]
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns whether the caller has waited, so that it goes before new callers.
    #[cfg(feature = "tokio")]
    pub(super) fn has_waited(&self) -> bool {
        self.ticket.is_some()
    }

    /// Adds the caller to the queue. If it has waited before, it gets its previous position.
    pub(super) fn wait(&mut self, state: &mut S, waker: &Waker) {
        let waiters = state.waiters();
        let ticket = *self.ticket.get_or_insert(waiters.next_ticket);
        waiters.next_ticket = waiters.next_ticket.max(ticket + 1);
        #[cfg(feature = "tokio")]
        {
            let first = waiters.first_deadline().unwrap_or(self.deadline);
            waiters.first_deadline = Some(first.min(self.deadline));
        }
        let waiting = Waiting { ticket, deadline: self.deadline, waker: waker.clone() };
        match waiters.position_of(ticket) {
            Ok(position) => waiters.queue[position] = waiting,
            Err(position) => waiters.queue.insert(position, waiting),
        }
    }

    /// Leaves the queue until the next [`wait`](Waiter::wait), unless the wait has ended. A call that runs in slices
    /// may not be polled for any length of time, and must not take another caller's wake meanwhile.
    pub(super) fn step_out_unless(&self, has_ended: bool) {
        if !has_ended {
            self.step_out();
        }
    }

    fn step_out(&self) {
        let Some(ticket) = self.ticket else { return };
        // The lock of an inherited queue may be held by a thread that does not exist in this process.
        if self.is_inherited() {
            return;
        }
        let next = {
            let mut state = self.state.lock();
            let waiters = state.waiters();
            if let Ok(position) = waiters.position_of(ticket) {
                waiters.queue.remove(position);
            }
            state.next()
        };
        next.into_iter().for_each(Waker::wake);
    }
}

impl<S: Limited> Drop for Waiter<'_, S> {
    fn drop(&mut self) {
        self.step_out();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    #[cfg(feature = "tokio")]
    use std::time::Duration;
    use std::time::Instant;

    use super::{Limited, WaitQueue, Waiter};
    use crate::sync::Lock;

    #[derive(Default)]
    struct One {
        is_taken: bool,
        waiters: WaitQueue,
    }

    impl Limited for One {
        fn room(&self) -> usize {
            usize::from(!self.is_taken)
        }

        fn waiters(&mut self) -> &mut WaitQueue {
            &mut self.waiters
        }
    }

    #[test]
    fn a_woken_caller_that_is_dropped_wakes_the_next() {
        let one = Lock::new("one", One { is_taken: true, waiters: WaitQueue::default() });
        let mut first = Waiter::new(&one, Instant::now());
        let mut second = Waiter::new(&one, Instant::now());
        first.wait(&mut one.lock(), Waker::noop());
        second.wait(&mut one.lock(), Waker::noop());
        one.lock().is_taken = false;
        assert_eq!(one.lock().next().len(), 1, "there is room for one");
        assert!(!one.lock().waiters.is_empty());
        drop(first);
        assert!(one.lock().waiters.is_empty(), "the second caller was woken as well");
    }

    #[test]
    fn a_caller_that_waits_again_keeps_its_position() {
        let one = Lock::new("one", One::default());
        let mut first = Waiter::new(&one, Instant::now());
        let mut second = Waiter::new(&one, Instant::now());
        first.wait(&mut one.lock(), Waker::noop());
        second.wait(&mut one.lock(), Waker::noop());
        one.lock().next();
        first.wait(&mut one.lock(), Waker::noop());
        let tickets: Vec<_> = one.lock().waiters.queue.iter().map(|waiting| waiting.ticket).collect();
        assert_eq!(tickets, [0, 1]);
    }

    #[cfg(feature = "tokio")]
    #[test]
    fn a_late_caller_is_found_behind_one_that_waits_longer() {
        let one = Lock::new("one", One::default());
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut waiters = [30, 10, 20].map(|seconds| Waiter::new(&one, after(seconds)));
        waiters.iter_mut().for_each(|waiter| waiter.wait(&mut one.lock(), Waker::noop()));
        let mut queue = one.lock();
        let mut late = |seconds| (queue.waiters.take_late(after(seconds)).len(), queue.waiters.first_deadline());
        assert_eq!(late(9), (0, Some(after(10))));
        assert_eq!(late(10), (1, Some(after(20))));
        assert_eq!(late(40), (2, None));
    }

    #[test]
    fn an_inherited_wait_touches_no_lock() {
        let one = Lock::new("one", One::default());
        let mut inherited = Waiter::new(&one, Instant::now());
        inherited.ticket = Some(0);
        inherited.generation -= 1;
        let _held_by_a_missing_thread = one.lock();
        drop(inherited);
    }
}
