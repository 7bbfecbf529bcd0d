//! The one lock of this crate, and the one way to wait without a runtime.
//!
//! The lock is a `std::sync::Mutex` that shrugs off poisoning (what it guards is valid between any two statements) and that
//! a test can hold at a chosen moment. It lives only in values that belong to a generation, see
//! [`ProcessLocal`](crate::lifecycle::ProcessLocal): a child never meets one that a vanished thread has locked. One fork can
//! not be helped: by a signal handler that interrupts the wait for a lock, and then returns to it in the child.

use std::future::Future;
use std::pin::Pin;
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
    /// `name` is what a fork test calls the lock by.
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
}

/// Polls until it is ready, parking this thread in between; `None` if the deadline passes.
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

/// Waits for a future, parking this thread.
pub(crate) fn block_on<F: Future + Unpin>(future: &mut F) -> F::Output {
    block_until(None, |cx| Pin::new(&mut *future).poll(cx)).expect("there is no deadline")
}
