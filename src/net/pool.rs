//! Idle connections, and a permit to have one.
//!
//! A connection is leased for one exchange. A [`Lease`] destroys its connection unless [`Lease::finish`] says that the
//! exchange is complete: a future that is dropped, an error, a timeout and a panic all end in the lease's drop, so a
//! reply that is still under way never meets the next caller.
//!
//! What is pooled belongs to a generation: a child starts with an empty pool and every place free, whatever other
//! threads had leased at the fork. Leases and waits carry their generation; the drop of an inherited one does nothing.
//!
//! Only callers that block have pooled connections: inside a tokio runtime they share a pipeline. Waiters stand in a
//! queue of wakers. One that was woken and then gave up passes the turn on.

use std::collections::VecDeque;
use std::mem;
use std::sync::MutexGuard;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::lifecycle::{ProcessLocal, generation};
use crate::sync::{Lock, block_until};

#[derive(Debug)]
pub(super) struct Pool<C> {
    state: ProcessLocal<Lock<State<C>>>,
    size: usize,
}

#[derive(Debug)]
struct State<C> {
    size: usize,
    idle: Vec<C>,
    leased: usize,
    waiting: VecDeque<(u64, Waker)>,
    next_ticket: u64,
    /// Goes up with each reset: what was leased before is not taken back.
    epoch: u64,
}

/// Why there is no lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoLease {
    /// No place became free in time.
    Exhausted,
    /// The wait began in a parent process.
    Forked,
}

impl<C: Send> Pool<C> {
    /// At most `size` connections at a time.
    pub(super) fn new(size: usize) -> Pool<C> {
        Pool { state: ProcessLocal::new(), size: size.max(1) }
    }

    /// A lease, with an idle connection if there is one; `None` while every slot is taken.
    pub(super) fn try_lease(&self) -> Option<Lease<'_, C>> {
        let mut turn = self.turn();
        let state = turn.state.lock();
        (state.leased < state.size).then(|| turn.lease(state))
    }

    /// Waits for a lease until `deadline`, blocking this thread.
    pub(super) fn lease(&self, deadline: Instant) -> Result<Lease<'_, C>, NoLease> {
        let mut turn = self.turn();
        block_until(Some(deadline), |cx| turn.poll(cx)).unwrap_or(Err(NoLease::Exhausted))
    }

    fn turn(&self) -> Turn<'_, C> {
        let generation = generation();
        let state = self.state.get_or_init(|| Lock::new("pool", State::new(self.size)));
        Turn { state, generation, ticket: None }
    }

    /// Forgets every connection: the idle ones now, the leased ones when they come back.
    pub(super) fn reset(&self) {
        if let Some(state) = self.state.get() {
            let idle = {
                let mut state = state.lock();
                state.epoch += 1;
                mem::take(&mut state.idle)
            };
            // Closed outside of the lock.
            drop(idle);
        }
    }
}

impl<C> State<C> {
    fn new(size: usize) -> State<C> {
        State { size, idle: Vec::new(), leased: 0, waiting: VecDeque::new(), next_ticket: 0, epoch: 0 }
    }

    fn wake_one(&mut self) -> Option<Waker> {
        self.waiting.pop_front().map(|(_, waker)| waker)
    }
}

/// A caller's turn to lease, from the first attempt to the lease.
struct Turn<'a, C> {
    state: &'a Lock<State<C>>,
    generation: u64,
    ticket: Option<u64>,
}

impl<'a, C> Turn<'a, C> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Lease<'a, C>, NoLease>> {
        if self.generation != generation() {
            return Poll::Ready(Err(NoLease::Forked));
        }
        let mut state = self.state.lock();
        if state.leased == state.size {
            self.wait(&mut state, cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(Ok(self.lease(state)))
    }

    /// Takes a place, of which there must be one.
    fn lease(&mut self, mut state: MutexGuard<'_, State<C>>) -> Lease<'a, C> {
        if let Some(ticket) = self.ticket.take() {
            state.waiting.retain(|(waiting, _)| *waiting != ticket);
        }
        state.leased += 1;
        let connection = state.idle.pop();
        Lease {
            state: self.state,
            generation: self.generation,
            epoch: state.epoch,
            reused: connection.is_some(),
            connection,
        }
    }

    /// Queues, at the place it had before if it was woken in vain.
    fn wait(&mut self, state: &mut State<C>, waker: &Waker) {
        match self.ticket {
            Some(ticket) => match state.waiting.iter_mut().find(|(waiting, _)| *waiting == ticket) {
                Some((_, waiting)) => waiting.clone_from(waker),
                None => state.waiting.push_front((ticket, waker.clone())),
            },
            None => {
                let ticket = state.next_ticket;
                state.next_ticket += 1;
                state.waiting.push_back((ticket, waker.clone()));
                self.ticket = Some(ticket);
            }
        }
    }
}

impl<C> Drop for Turn<'_, C> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        // An inherited queue's lock may be held for ever.
        if self.generation != generation() {
            return;
        }
        let next = {
            let mut state = self.state.lock();
            let queued = state.waiting.len();
            state.waiting.retain(|(waiting, _)| *waiting != ticket);
            let was_woken = state.waiting.len() == queued;
            if was_woken { state.wake_one() } else { None }
        };
        if let Some(next) = next {
            next.wake();
        }
    }
}

/// A permit to have one connection, for one exchange.
pub(super) struct Lease<'a, C> {
    state: &'a Lock<State<C>>,
    generation: u64,
    epoch: u64,
    reused: bool,
    connection: Option<C>,
}

impl<C> Lease<'_, C> {
    /// The idle connection that came with the lease, or the one that was put into it.
    pub(super) fn connection(&mut self) -> Option<&mut C> {
        self.connection.as_mut()
    }

    /// Whether the connection has served before.
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Destroys the connection that came with the lease, if it is not to be trusted.
    pub(super) fn discard(&mut self) {
        self.reused = false;
        self.connection = None;
    }

    /// Puts a fresh connection in.
    pub(super) fn fill(&mut self, connection: C) {
        self.connection = Some(connection);
    }

    /// The exchange is complete: the connection may serve again.
    pub(super) fn finish(mut self) {
        let connection = self.connection.take();
        self.give_back(connection);
    }

    fn give_back(&mut self, connection: Option<C>) {
        if self.generation != generation() {
            mem::forget(connection);
            return;
        }
        let (next, refused) = {
            let mut state = self.state.lock();
            state.leased -= 1;
            let refused = match connection {
                Some(connection) if state.epoch == self.epoch => {
                    state.idle.push(connection);
                    None
                }
                other => other,
            };
            (state.wake_one(), refused)
        };
        self.generation = GIVEN_BACK;
        drop(refused);
        if let Some(next) = next {
            next.wake();
        }
    }
}

/// In place of a lease's generation, once it was given back.
const GIVEN_BACK: u64 = 0;

impl<C> Drop for Lease<'_, C> {
    fn drop(&mut self) {
        let unfinished = self.connection.take();
        if self.generation == generation() {
            drop(unfinished);
            self.give_back(None);
        } else {
            mem::forget(unfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};
    use std::time::{Duration, Instant};

    use super::{Lease, NoLease, Pool, Turn};
    use crate::lifecycle::generation;

    fn lease<C: Send>(pool: &Pool<C>, patience: Duration) -> Result<Lease<'_, C>, NoLease> {
        pool.lease(Instant::now() + patience)
    }

    const GENEROUS: Duration = Duration::from_secs(60);

    #[test]
    fn a_finished_exchange_returns_its_connection() {
        let pool = Pool::new(1);
        let mut first = lease(&pool, GENEROUS).unwrap();
        first.fill('a');
        first.finish();
        let mut second = lease(&pool, GENEROUS).unwrap();
        assert!(second.is_reused());
        assert_eq!(second.connection(), Some(&mut 'a'));
    }

    #[test]
    fn an_unfinished_exchange_destroys_its_connection() {
        let pool = Pool::new(1);
        lease(&pool, GENEROUS).unwrap().fill('a');
        assert_eq!(lease(&pool, GENEROUS).unwrap().connection(), None);
    }

    #[test]
    fn a_reset_destroys_what_comes_back_later() {
        let pool = Pool::new(1);
        let mut leased = lease(&pool, GENEROUS).unwrap();
        leased.fill('a');
        pool.reset();
        leased.finish();
        assert_eq!(lease(&pool, GENEROUS).unwrap().connection(), None);
    }

    #[test]
    fn a_full_pool_is_waited_for_and_the_wait_is_bounded() {
        let pool = Pool::new(2);
        let held = [lease(&pool, GENEROUS).unwrap(), lease(&pool, GENEROUS).unwrap()];
        assert!(matches!(lease(&pool, Duration::from_millis(1)), Err(NoLease::Exhausted)));
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..8)
                .map(|number| {
                    let pool = &pool;
                    scope.spawn(move || {
                        let mut leased = lease(pool, GENEROUS).unwrap();
                        leased.fill(number);
                        leased.finish();
                    })
                })
                .collect();
            drop(held);
            for waiter in waiters {
                waiter.join().unwrap();
            }
        });
        assert_eq!(pool.state.get().unwrap().lock().leased, 0);
    }

    #[test]
    fn a_waiter_that_was_woken_and_gave_up_passes_the_turn_on() {
        let pool = Pool::<()>::new(1);
        let held = lease(&pool, GENEROUS).unwrap();
        let state = pool.state.get().unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let mut first = Turn { state, generation: generation(), ticket: None };
        let mut second = Turn { state, generation: generation(), ticket: None };
        assert!(first.poll(&mut context).is_pending());
        assert!(second.poll(&mut context).is_pending());
        drop(held);
        assert_eq!(state.lock().waiting.len(), 1, "one of them was woken");
        drop(first);
        assert_eq!(state.lock().waiting.len(), 0, "and so is the other");
        assert!(second.poll(&mut context).is_ready());
    }

    #[test]
    fn an_inherited_wait_touches_no_lock() {
        let pool = Pool::<()>::new(1);
        drop(lease(&pool, GENEROUS));
        let state = pool.state.get().unwrap();
        let _held_by_a_vanished_thread = state.lock();
        let mut inherited = Turn { state, generation: generation() - 1, ticket: Some(0) };
        let polled = inherited.poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Err(NoLease::Forked))));
        drop(inherited);
    }
}
