//! The lock of this crate, and waiting without a runtime.
//!
//! The lock is a `std::sync::Mutex` that ignores poisoning (the guarded data is valid between any two statements), and
//! that a test can hold at a chosen point. It is used only in values that belong to a generation, see
//! [`ProcessLocal`](crate::lifecycle::ProcessLocal), so a child never uses one that a vanished thread has locked. One
//! fork cannot be handled: by a signal handler that interrupts the wait for a lock, and then returns to it in the
//! child.

use std::future::Future;
use std::pin::Pin;
#[cfg(feature = "__servers")]
use std::sync::TryLockError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Lock<T> {
    #[cfg(feature = "__injection")]
    name: &'static str,
    mutex: Mutex<T>,
}

impl<T> Lock<T> {
    /// Returns a lock. `name` identifies it in fork tests.
    #[cfg_attr(not(feature = "__injection"), expect(unused_variables))]
    pub(crate) const fn new(name: &'static str, value: T) -> Lock<T> {
        Lock {
            #[cfg(feature = "__injection")]
            name,
            mutex: Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.mutex.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(feature = "__injection")]
        crate::injection::reach(self.name);
        guard
    }

    /// Locks unless a thread holds the lock. For an inherited one: where it is free, no thread was inside at the fork.
    #[cfg(feature = "__servers")]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.mutex.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Polls until the result is ready, and parks this thread in between. Returns `None` if the deadline passes.
pub(crate) fn block_until<T>(
    deadline: Option<Instant>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    if let Poll::Ready(ready) = poll(&mut Context::from_waker(Waker::noop())) {
        return Some(ready);
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(ready) = poll(&mut Context::from_waker(&waker)) {
            return Some(ready);
        }
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => thread::park(),
            Some(left) if left.is_zero() => return None,
            Some(left) => thread::park_timeout(left),
        }
    }
}

/// Waits for a future, and parks this thread meanwhile.
pub(crate) fn block_on<F: Future + Unpin>(future: &mut F) -> F::Output {
    block_until(None, |cx| Pin::new(&mut *future).poll(cx)).expect("there is no deadline")
}
