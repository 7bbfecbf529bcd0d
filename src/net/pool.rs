//! The pool of idle connections, and the permits to use or open one.
//!
//! A connection is checked out for one exchange. A [`Checkout`] closes its connection unless [`Checkout::finish`] is
//! called once the exchange is complete. A dropped future, an error, a timeout and a panic all drop the checkout, so a
//! late reply is never read by the next caller.
//!
//! The pool is process-local: a child starts with an empty pool and all permits, whatever other threads had checked out
//! at the fork. Checkouts and waits carry their generation; the drop of an inherited one does nothing.
//!
//! Only blocking callers use pooled connections. Callers inside a tokio runtime share a pipeline.

use std::mem;
use std::sync::MutexGuard;
use std::task::{Poll, Waker};
use std::time::Instant;

use super::wait_queue::{Limited, WaitQueue, Waiter};
use crate::execution::blocking;
use crate::lifecycle::{ProcessLocal, gate, generation};
use crate::sync::{Lock, block_until};

/// A pool of connections.
#[derive(Debug)]
pub(super) struct Pool<C> {
    state: ProcessLocal<Lock<State<C>>>,
    size: usize,
}

#[derive(Debug)]
struct State<C> {
    size: usize,
    /// The idle connections. The one that was used last comes last, and is used first.
    idle: Vec<C>,
    leased: usize,
    waiters: WaitQueue,
    /// Incremented by each reset: connections that were checked out before are not returned to the pool.
    epoch: u64,
    built_in: u64,
}

/// The error of a checkout.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoCheckout {
    /// No permit became free in time.
    Exhausted,
    /// The wait began in a parent process.
    Forked,
}

impl<C: Send> Pool<C> {
    /// Creates a pool of at most `size` connections, but at least one.
    pub(super) fn new(size: usize) -> Pool<C> {
        Pool { state: ProcessLocal::new(), size: size.max(1) }
    }

    /// Checks a connection out, or a permit without one if none is idle. Returns `None` while all permits are taken.
    pub(super) fn try_lease(&self) -> Option<Checkout<'_, C>> {
        let generation = generation();
        let state = self.state();
        let locked = state.lock();
        (locked.leased < locked.size).then(|| Checkout::of(state, locked, generation))
    }

    /// Waits for a permit until `deadline`, blocking this thread.
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

    /// Closes every connection: the idle ones now, the others when they are returned.
    pub(super) fn reset(&self) {
        self.forget_idle(|_| true, 1);
    }

    /// Closes the idle connections for which `is_closed` returns `true`.
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
            // They are closed outside of the lock.
            drop(forgotten);
        }
    }

    /// The number of idle connections, and of permits that are taken.
    pub(super) fn count(&self) -> (usize, usize) {
        self.state.get().map_or((0, 0), |state| {
            let state = state.lock();
            (state.idle.len(), state.leased)
        })
    }
}

/// Frees the memory of the parent's idle connections, whose sockets are cut already. It would accumulate in a chain of
/// processes, each forked by the one before. If the fork bypassed its handlers, another thread may have held a lock of
/// the allocator, and the memory is leaked.
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

/// A permit to use one connection for one exchange, and the connection.
pub(super) struct Checkout<'a, C> {
    state: &'a Lock<State<C>>,
    generation: u64,
    epoch: u64,
    reused: bool,
    connection: Option<C>,
}

impl<'a, C> Checkout<'a, C> {
    /// Takes a permit, of which there must be a free one.
    fn of(state: &'a Lock<State<C>>, mut locked: MutexGuard<'_, State<C>>, generation: u64) -> Checkout<'a, C> {
        locked.leased += 1;
        let connection = locked.idle.pop();
        Checkout { state, generation, epoch: locked.epoch, reused: connection.is_some(), connection }
    }

    /// The connection: an idle one of the pool, or the one that was put in by [`fill`](Checkout::fill).
    pub(super) fn connection(&mut self) -> Option<&mut C> {
        self.connection.as_mut()
    }

    /// Returns whether the connection has served before.
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Closes the connection of the pool, and keeps the permit.
    pub(super) fn discard(&mut self) {
        self.reused = false;
        self.connection = None;
    }

    /// Puts a new connection in.
    pub(super) fn fill(&mut self, connection: C) {
        self.connection = Some(connection);
    }

    /// Returns the connection to the pool, after a complete exchange.
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

/// The generation of a checkout that was returned: no process has it.
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
