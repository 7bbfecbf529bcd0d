//! Callers that wait for their turn, in the order in which they came.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Instant;

use crate::lifecycle::generation;
use crate::sync::Lock;

/// What there is not enough of for everybody, under one lock with those that wait for it.
pub(super) trait Limited {
    /// For how many callers there is room.
    fn room(&self) -> usize;

    fn waiters(&mut self) -> &mut WaitQueue;

    /// Those that are to be woken, since there is room for them.
    fn next(&mut self) -> Vec<Waker> {
        let room = self.room();
        self.waiters().take(room)
    }
}

#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    queue: VecDeque<Waiting>,
    next_ticket: u64,
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

    /// Takes the first ones out of the queue. One that wakes in vain waits again, at its old place.
    #[inline]
    pub(super) fn take(&mut self, count: usize) -> Vec<Waker> {
        if self.queue.is_empty() {
            return Vec::new();
        }
        let count = count.min(self.queue.len());
        self.queue.drain(..count).map(|waiting| waiting.waker).collect()
    }

    #[cfg(feature = "tokio")]
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.queue.front().map(|waiting| waiting.deadline)
    }

    /// How many, from the first on, have waited too long.
    #[cfg(feature = "tokio")]
    pub(super) fn late(&self, now: Instant) -> usize {
        self.queue.iter().take_while(|waiting| waiting.deadline <= now).count()
    }

    fn place_of(&self, ticket: u64) -> Result<usize, usize> {
        self.queue.binary_search_by_key(&ticket, |waiting| waiting.ticket)
    }
}

/// A caller's turn. If it is dropped after the caller was woken, the next one is.
pub(super) struct Waiter<'a, S: Limited> {
    state: &'a Lock<S>,
    generation: u64,
    deadline: Instant,
    /// Its place in the queue, once it waits.
    ticket: Option<u64>,
}

impl<'a, S: Limited> Waiter<'a, S> {
    pub(super) fn new(state: &'a Lock<S>, deadline: Instant) -> Waiter<'a, S> {
        Waiter { state, generation: generation(), deadline, ticket: None }
    }

    /// Whether the process that began the wait is another one.
    pub(super) fn is_inherited(&self) -> bool {
        self.generation != generation()
    }

    #[cfg(feature = "tokio")]
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether it has waited, so that it goes before those that come now.
    #[cfg(feature = "tokio")]
    pub(super) fn has_waited(&self) -> bool {
        self.ticket.is_some()
    }

    /// Queues, at the place that it had before if it was woken in vain.
    pub(super) fn wait(&mut self, state: &mut S, waker: &Waker) {
        let waiters = state.waiters();
        let ticket = *self.ticket.get_or_insert(waiters.next_ticket);
        waiters.next_ticket = waiters.next_ticket.max(ticket + 1);
        let waiting = Waiting { ticket, deadline: self.deadline, waker: waker.clone() };
        match waiters.place_of(ticket) {
            Ok(place) => waiters.queue[place] = waiting,
            Err(place) => waiters.queue.insert(place, waiting),
        }
    }

    /// Leaves the queue until it waits again, at the same place, unless the wait has ended: a call that has slices may
    /// be left for any time, and must not be woken instead of another one meanwhile.
    pub(super) fn step_out_unless(&self, has_ended: bool) {
        if !has_ended {
            self.step_out();
        }
    }

    fn step_out(&self) {
        let Some(ticket) = self.ticket else { return };
        // An inherited queue's lock may be held for ever.
        if self.is_inherited() {
            return;
        }
        let next = {
            let mut state = self.state.lock();
            let waiters = state.waiters();
            if let Ok(place) = waiters.place_of(ticket) {
                waiters.queue.remove(place);
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
    fn one_that_was_woken_and_gave_up_passes_the_turn_on() {
        let one = Lock::new("one", One { is_taken: true, waiters: WaitQueue::default() });
        let mut first = Waiter::new(&one, Instant::now());
        let mut second = Waiter::new(&one, Instant::now());
        first.wait(&mut one.lock(), Waker::noop());
        second.wait(&mut one.lock(), Waker::noop());
        one.lock().is_taken = false;
        assert_eq!(one.lock().next().len(), 1, "there is room for one");
        assert!(!one.lock().waiters.is_empty());
        drop(first);
        assert!(one.lock().waiters.is_empty(), "the second was woken as well");
    }

    #[test]
    fn one_that_was_woken_in_vain_keeps_its_place() {
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

    #[test]
    fn an_inherited_wait_touches_no_lock() {
        let one = Lock::new("one", One::default());
        let mut inherited = Waiter::new(&one, Instant::now());
        inherited.ticket = Some(0);
        inherited.generation -= 1;
        let _held_by_a_vanished_thread = one.lock();
        drop(inherited);
    }
}
