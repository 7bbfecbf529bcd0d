//! What was learnt one after the other, and which of it counts now.
//!
//! A value that was learnt lives as long as the whole, so that it can be looked at without a lock and without a count. A
//! fork finds it learnt or not, and a child goes on with what its parent knew. A value that comes again is not kept twice,
//! and there is a bound.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::append_only::AppendOnly;

/// How many different values are kept.
const MOST: usize = 4_096;

pub(crate) struct History<T> {
    learnt: AppendOnly<T>,
    /// The place of what counts now.
    current: AtomicUsize,
}

/// There have been too many different values.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl<T: Eq> History<T> {
    pub(crate) fn new(first: T) -> History<T> {
        let learnt = AppendOnly::with_room_for(MOST);
        learnt.find_or_add(|_| false, || first);
        History { learnt, current: AtomicUsize::new(0) }
    }

    /// What counts now.
    #[inline]
    pub(crate) fn current(&self) -> &T {
        self.at(self.current.load(Ordering::Acquire))
    }

    /// Has a value count from now on, and returns it.
    pub(crate) fn learn(&self, value: T) -> Result<&T, TooMany> {
        let place = self.learnt.place_of(value).ok_or(TooMany)?;
        self.current.store(place, Ordering::Release);
        Ok(self.at(place))
    }

    fn at(&self, place: usize) -> &T {
        self.learnt.get(place).expect("what was learnt stays")
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
