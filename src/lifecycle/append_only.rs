//! A list that only grows, read and added to without a lock.
//!
//! What is in it stays where it is until the list is dropped, so it can be read at any time, also in a child: a fork finds
//! each place filled, by a compare-and-swap of a whole value, or empty.

use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

pub(crate) struct AppendOnly<T> {
    /// Filled from the first on.
    places: Box<[AtomicPtr<T>]>,
    owns: PhantomData<T>,
}

// SAFETY: what is published is only read, by shared reference (`T: Sync`), and dropped by whoever has the list to itself
// (`T: Send`).
unsafe impl<T: Send + Sync> Sync for AppendOnly<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for AppendOnly<T> {}

impl<T> AppendOnly<T> {
    pub(crate) fn with_room_for(count: usize) -> AppendOnly<T> {
        AppendOnly { places: (0..count).map(|_| AtomicPtr::new(ptr::null_mut())).collect(), owns: PhantomData }
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        let value = self.places.get(index)?.load(Ordering::Acquire);
        // SAFETY: null, or made by `Box::into_raw` in `add_unless` and freed only by `drop`, which has the only reference.
        unsafe { value.as_ref() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.places.len()).map_while(|index| self.get(index))
    }

    /// The place of the first value that is meant; where there is none, that of a new one behind all others. `None` where
    /// there is no room for it.
    pub(crate) fn find_or_add(&self, is_meant: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Option<usize> {
        let found = self.iter().position(&is_meant);
        found.or_else(|| self.add_unless(|held, _| is_meant(held), make()))
    }

    /// The place of this value, which is added behind all others where there is none that equals it. `None` where there is
    /// no room for it.
    pub(crate) fn place_of(&self, value: T) -> Option<usize>
    where
        T: Eq,
    {
        self.add_unless(|held, value| held == value, value)
    }

    fn add_unless(&self, is_meant: impl Fn(&T, &T) -> bool, value: T) -> Option<usize> {
        let mut fresh = Box::new(value);
        for (index, place) in self.places.iter().enumerate() {
            if self.get(index).is_none() {
                let pointer = Box::into_raw(fresh);
                if place.compare_exchange(ptr::null_mut(), pointer, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    return Some(index);
                }
                // SAFETY: made above and not published.
                fresh = unsafe { Box::from_raw(pointer) };
            }
            if self.get(index).is_some_and(|held| is_meant(held, &fresh)) {
                return Some(index);
            }
        }
        None
    }
}

impl<T> Drop for AppendOnly<T> {
    fn drop(&mut self) {
        for place in &mut self.places {
            let value = *place.get_mut();
            if !value.is_null() {
                // SAFETY: made by `Box::into_raw`, and nobody else has a reference.
                drop(unsafe { Box::from_raw(value) });
            }
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for AppendOnly<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::AppendOnly;

    #[test]
    fn what_is_there_is_found_and_not_made_again() {
        let list = AppendOnly::with_room_for(2);
        assert_eq!(list.find_or_add(|held| *held == "a", || "a"), Some(0));
        assert_eq!(list.find_or_add(|held| *held == "b", || "b"), Some(1));
        assert_eq!(list.find_or_add(|held| *held == "a", || panic!("it is there")), Some(0));
        assert_eq!(list.find_or_add(|held| *held == "c", || "c"), None, "there is no room");
        assert_eq!((list.get(1), list.get(2), list.iter().count()), (Some(&"b"), None, 2));
    }

    #[test]
    fn threads_that_add_at_once_agree() {
        for _ in 0..50 {
            let list = AppendOnly::with_room_for(8);
            let list = &list;
            std::thread::scope(|scope| {
                for start in 0..4 {
                    scope.spawn(move || {
                        for number in (0..4).map(|number| (number + start) % 4) {
                            let place = list.find_or_add(|held| *held == number, || number).expect("there is room");
                            assert_eq!(list.get(place), Some(&number));
                        }
                    });
                }
            });
            assert_eq!(list.iter().count(), 4, "{list:?}");
        }
    }

    #[test]
    fn values_are_dropped_with_the_whole() {
        let value = Arc::new(());
        let list = AppendOnly::with_room_for(4);
        list.find_or_add(|_| false, || value.clone());
        list.find_or_add(|_| false, || value.clone());
        assert_eq!(Arc::strong_count(&value), 3);
        drop(list);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
