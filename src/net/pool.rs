//! Idle connections, and a permit to have one.
//!
//! A connection is leased for one exchange. A [`Checkout`] destroys its connection unless [`Checkout::finish`] says that the
//! exchange is complete: a future that is dropped, an error, a timeout and a panic all end in the lease's drop, so a
//! reply that is still under way never meets the next caller.
//!
//! What is pooled belongs to a generation: a child starts with an empty pool and every place free, whatever other
//! threads had leased at the fork. Leases and waits carry their generation; the drop of an inherited one does nothing.
//!
//! Only callers that block have pooled connections: inside a tokio runtime they share a pipeline.

use std::mem;
use std::sync::MutexGuard;
use std::task::{Poll, Waker};
use std::time::Instant;

use super::wait_queue::{Limited, WaitQueue, Waiter};
use crate::execution::blocking;
use crate::lifecycle::{ProcessLocal, gate, generation};
use crate::sync::{Lock, block_until};

#[derive(Debug)]
pub(super) struct Pool<C> {
    state: ProcessLocal<Lock<State<C>>>,
    size: usize,
}

#[derive(Debug)]
struct State<C> {
    size: usize,
    /// The one that was used last comes last.
    idle: Vec<C>,
    leased: usize,
    waiters: WaitQueue,
    /// Goes up with each reset: what was leased before is not taken back.
    epoch: u64,
    built_in: u64,
}

/// Why there is no lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoCheckout {
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
    pub(super) fn try_lease(&self) -> Option<Checkout<'_, C>> {
        let generation = generation();
        let state = self.state();
        let locked = state.lock();
        (locked.leased < locked.size).then(|| Checkout::of(state, locked, generation))
    }

    /// Waits for a lease until `deadline`, blocking this thread.
    pub(super) async fn lease(&self, deadline: Instant) -> Result<Checkout<'_, C>, NoCheckout> {
        let generation = generation();
        let state = self.state();
        let mut turn = Waiter::new(state, deadline);
        let leased = blocking(deadline, |until| {
            let leased = block_until(Some(until), |cx| {
                if turn.is_inherited() {
                    return Poll::Ready(Err(NoCheckout::Forked));
                }
                let mut locked = state.lock();
                if locked.room() == 0 {
                    turn.wait(&mut locked, cx.waker());
                    return Poll::Pending;
                }
                Poll::Ready(Ok(Checkout::of(state, locked, generation)))
            });
            turn.step_out_unless(leased.is_some());
            leased
        });
        leased.await.unwrap_or(Err(NoCheckout::Exhausted))
    }

    fn state(&self) -> &Lock<State<C>> {
        self.state.get_or_inherit(|inherited| {
            if let Some(inherited) = inherited {
                free_idle(inherited);
            }
            let (idle, waiters) = (Vec::new(), WaitQueue::default());
            Lock::new("pool", State { size: self.size, idle, leased: 0, waiters, epoch: 0, built_in: generation() })
        })
    }

    /// Forgets every connection: the idle ones now, the leased ones when they come back.
    pub(super) fn reset(&self) {
        self.forget_idle(|_| true, 1);
    }

    /// Closes the idle connections for which that is so.
    pub(super) fn close_idle(&self, is_closed: impl FnMut(&mut C) -> bool) {
        self.forget_idle(is_closed, 0);
    }

    fn forget_idle(&self, mut is_forgotten: impl FnMut(&mut C) -> bool, epochs: u64) {
        if let Some(state) = self.state.get() {
            let forgotten: Vec<C> = {
                let mut state = state.lock();
                state.epoch += epochs;
                state.idle.extract_if(.., |connection| is_forgotten(connection)).collect()
            };
            // Closed outside of the lock.
            drop(forgotten);
        }
    }

    /// How many connections are idle, and how many are leased.
    pub(super) fn count(&self) -> (usize, usize) {
        self.state.get().map_or((0, 0), |state| {
            let state = state.lock();
            (state.idle.len(), state.leased)
        })
    }
}

/// Frees the memory of the parent's idle connections, whose sockets are cut already. In a chain of processes, each forked
/// by the one before, it would pile up. Where the fork went round its handlers, another thread may have held a lock of the
/// allocator: then the memory is leaked.
fn free_idle<C>(inherited: &Lock<State<C>>) {
    if let Some(mut state) = inherited.try_lock()
        && gate::intact_since(state.built_in).is_ok()
    {
        drop(mem::take(&mut state.idle));
    }
}

impl<C> Limited for State<C> {
    fn room(&self) -> usize {
        self.size - self.leased
    }

    fn waiters(&mut self) -> &mut WaitQueue {
        &mut self.waiters
    }
}

/// A permit to have one connection, for one exchange.
pub(super) struct Checkout<'a, C> {
    state: &'a Lock<State<C>>,
    generation: u64,
    epoch: u64,
    reused: bool,
    connection: Option<C>,
}

impl<'a, C> Checkout<'a, C> {
    /// Takes a place, of which there must be one.
    fn of(state: &'a Lock<State<C>>, mut locked: MutexGuard<'_, State<C>>, generation: u64) -> Checkout<'a, C> {
        locked.leased += 1;
        let connection = locked.idle.pop();
        Checkout { state, generation, epoch: locked.epoch, reused: connection.is_some(), connection }
    }

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
            (state.waiters.take(1), refused)
        };
        self.generation = GIVEN_BACK;
        drop(refused);
        next.into_iter().for_each(Waker::wake);
    }
}

/// In place of a lease's generation, once it was given back.
const GIVEN_BACK: u64 = 0;

impl<C> Drop for Checkout<'_, C> {
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
    use std::time::{Duration, Instant};

    use super::{Checkout, NoCheckout, Pool};
    use crate::sync::block_on;

    fn lease<C: Send>(pool: &Pool<C>, patience: Duration) -> Result<Checkout<'_, C>, NoCheckout> {
        block_on(&mut Box::pin(pool.lease(Instant::now() + patience)))
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
        assert!(matches!(lease(&pool, Duration::from_millis(1)), Err(NoCheckout::Exhausted)));
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
}
