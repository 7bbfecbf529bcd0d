//! A history of values, of which one is current.
//!
//! Each value lives as long as the history, so it can be read without a lock or a reference count. At a fork a value is
//! either in the history or not, and the child goes on with its parent's history. Equal values are stored once, and
//! their number is limited.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::append_only::AppendOnly;

/// The maximal number of different values.
const MAX_VALUES: usize = 4_096;

pub(crate) struct History<T> {
    values: AppendOnly<T>,
    /// The index of the current value.
    current: AtomicUsize,
}

/// The error when there are too many different values.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl<T: Eq> History<T> {
    pub(crate) fn new(first: T) -> History<T> {
        let values = AppendOnly::with_room_for(MAX_VALUES);
        values.find_or_add(|_| false, || first);
        History { values, current: AtomicUsize::new(0) }
    }

    /// Returns the current value.
    #[inline]
    pub(crate) fn current(&self) -> &T {
        self.at(self.current.load(Ordering::Acquire))
    }

    /// Makes a value current, and returns it.
    pub(crate) fn learn(&self, value: T) -> Result<&T, TooMany> {
        let index = self.values.index_of(value).ok_or(TooMany)?;
        self.current.store(index, Ordering::Release);
        Ok(self.at(index))
    }

    fn at(&self, index: usize) -> &T {
        self.values.get(index).expect("values are never removed")
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

    use super::{History, MAX_VALUES, TooMany};

    #[test]
    fn equal_values_are_stored_once() {
        let history = History::new("a".to_owned());
        let first: *const String = history.current();
        assert_eq!(history.learn("b".to_owned()).unwrap(), "b");
        assert_eq!(history.current(), "b");
        assert_eq!(history.learn("a".to_owned()).map(std::ptr::from_ref), Ok(first));
        assert_eq!(history.current(), "a");
    }

    #[test]
    fn a_full_history_still_accepts_known_values() {
        let history = History::new(0);
        for number in 1..MAX_VALUES {
            history.learn(number).unwrap();
        }
        assert_eq!(history.learn(MAX_VALUES), Err(TooMany));
        assert_eq!(history.current(), &(MAX_VALUES - 1));
        assert_eq!(history.learn(7), Ok(&7));
    }

    #[test]
    fn concurrent_threads_agree_and_all_values_are_dropped() {
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
