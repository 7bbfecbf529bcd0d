//! What was learnt one after the other, and which of it counts now.
//!
//! A value that was learnt lives as long as the whole, so that it can be looked at without a lock and without a count.
//! Each is published whole by a compare-and-swap: a fork finds it learnt or not, and a child goes on with what its parent
//! knew. A value that comes again is not kept twice, and there is a bound.

use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// How many different values are kept.
const MOST: usize = 4_096;

pub(crate) struct History<T> {
    newest: AtomicPtr<Learnt<T>>,
    current: AtomicPtr<Learnt<T>>,
    owns: PhantomData<Learnt<T>>,
}

struct Learnt<T> {
    value: T,
    /// Counted from 1.
    number: usize,
    older: *mut Learnt<T>,
}

/// There have been too many different values.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

// SAFETY: what is published is only read, by shared reference (`T: Sync`), and dropped by whoever has the whole to itself
// (`T: Send`).
unsafe impl<T: Send + Sync> Sync for History<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for History<T> {}

impl<T: Eq> History<T> {
    pub(crate) fn new(first: T) -> History<T> {
        let first = Box::into_raw(Box::new(Learnt { value: first, number: 1, older: ptr::null_mut() }));
        History { newest: AtomicPtr::new(first), current: AtomicPtr::new(first), owns: PhantomData }
    }

    /// What counts now.
    #[inline]
    pub(crate) fn current(&self) -> &T {
        // SAFETY: never null, made by `Box::into_raw`, and freed only by `drop`, which has the only reference.
        unsafe { &(*self.current.load(Ordering::Acquire)).value }
    }

    /// Has a value count from now on, and returns it.
    pub(crate) fn learn(&self, value: T) -> Result<&T, TooMany> {
        let learnt = self.find_or_keep(value)?;
        self.current.store(learnt, Ordering::Release);
        // SAFETY: as in `current`.
        Ok(unsafe { &(*learnt).value })
    }

    fn find_or_keep(&self, mut value: T) -> Result<*mut Learnt<T>, TooMany> {
        loop {
            let newest = self.newest.load(Ordering::Acquire);
            if let Some(known) = find(newest, &value) {
                return Ok(known);
            }
            // SAFETY: as in `current`.
            let number = unsafe { (*newest).number } + 1;
            if number > MOST {
                return Err(TooMany);
            }
            let fresh = Box::into_raw(Box::new(Learnt { value, number, older: newest }));
            if self.newest.compare_exchange(newest, fresh, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Ok(fresh);
            }
            // SAFETY: made above and never published.
            value = unsafe { Box::from_raw(fresh) }.value;
        }
    }
}

/// Where a value is among those that were learnt up to this one.
fn find<T: Eq>(newest: *mut Learnt<T>, value: &T) -> Option<*mut Learnt<T>> {
    let mut next = newest;
    // SAFETY: null, or alive as long as the history, which whoever calls this has a reference to.
    while let Some(learnt) = unsafe { next.as_ref() } {
        if learnt.value == *value {
            return Some(next);
        }
        next = learnt.older;
    }
    None
}

impl<T> Drop for History<T> {
    fn drop(&mut self) {
        let mut next = *self.newest.get_mut();
        while !next.is_null() {
            // SAFETY: made by `Box::into_raw`, and nobody else has a reference.
            next = unsafe { Box::from_raw(next) }.older;
        }
    }
}

impl<T: Eq + fmt::Debug> fmt::Debug for History<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.current().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::{History, MOST, TooMany};

    #[test]
    fn a_value_that_comes_again_is_the_same() {
        let history = History::new("a".to_owned());
        let first: *const String = history.current();
        assert_eq!(history.learn("b".to_owned()).unwrap(), "b");
        assert_eq!(history.current(), "b");
        assert_eq!(history.learn("a".to_owned()).map(std::ptr::from_ref), Ok(first));
        assert_eq!(history.current(), "a");
    }

    #[test]
    fn there_is_a_bound_and_what_is_known_is_still_learnt() {
        let history = History::new(0);
        for number in 1..MOST {
            history.learn(number).unwrap();
        }
        assert_eq!(history.learn(MOST), Err(TooMany));
        assert_eq!(history.current(), &(MOST - 1));
        assert_eq!(history.learn(7), Ok(&7));
    }

    #[test]
    fn threads_that_learn_at_once_agree_and_all_of_it_is_dropped() {
        let value = Arc::new(0);
        let history = History::new(Arc::clone(&value));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..200).for_each(|number| assert_eq!(**history.learn(Arc::new(number)).unwrap(), number))
                });
            }
        });
        let kept: *const i32 = &raw const **history.learn(Arc::new(0)).unwrap();
        assert_eq!(kept, &raw const *value);
        drop(history);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
