//! A list that only grows, and is read and appended to without a lock.
//!
//! A value never moves until the list is dropped, so it can be read at any time, in a child too: at a fork each slot is
//! either filled, by a compare-and-swap of a complete value, or empty.

use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

pub(crate) struct AppendOnly<T> {
    /// Filled from the first to the last.
    slots: Box<[AtomicPtr<T>]>,
    owns: PhantomData<T>,
}

// SAFETY: published values are only read, by shared reference (`T: Sync`), and dropped by the exclusive owner of the
// list (`T: Send`).
unsafe impl<T: Send + Sync> Sync for AppendOnly<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for AppendOnly<T> {}

impl<T> AppendOnly<T> {
    pub(crate) fn with_room_for(count: usize) -> AppendOnly<T> {
        AppendOnly { slots: (0..count).map(|_| AtomicPtr::new(ptr::null_mut())).collect(), owns: PhantomData }
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        let value = self.slots.get(index)?.load(Ordering::Acquire);
        // SAFETY: null, or made by `Box::into_raw` in `add_unless`. Freed only by `drop`, which has the only reference.
        unsafe { value.as_ref() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.slots.len()).map_while(|index| self.get(index))
    }

    /// Returns the index of the first value that `is_meant` selects. If there is none, appends a new value and returns
    /// its index. `None` if the list is full.
    pub(crate) fn find_or_add(&self, is_meant: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Option<usize> {
        let found = self.iter().position(&is_meant);
        found.or_else(|| self.add_unless(|held, _| is_meant(held), make()))
    }

    /// Returns the index of this value. If no equal value is in the list, appends it. `None` if the list is full.
    pub(crate) fn index_of(&self, value: T) -> Option<usize>
    where
        T: Eq,
    {
        self.add_unless(|held, value| held == value, value)
    }

    fn add_unless(&self, is_meant: impl Fn(&T, &T) -> bool, value: T) -> Option<usize> {
        let mut fresh = Box::new(value);
        for (index, slot) in self.slots.iter().enumerate() {
            if self.get(index).is_none() {
                let pointer = Box::into_raw(fresh);
                if slot.compare_exchange(ptr::null_mut(), pointer, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    return Some(index);
                }
                // SAFETY: allocated above and not published.
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
        for slot in &mut self.slots {
            let value = *slot.get_mut();
            if !value.is_null() {
                // SAFETY: made by `Box::into_raw`, and this is the only reference.
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
    fn an_existing_value_is_not_made_again() {
        let list = AppendOnly::with_room_for(2);
        assert_eq!(list.find_or_add(|held| *held == "a", || "a"), Some(0));
        assert_eq!(list.find_or_add(|held| *held == "b", || "b"), Some(1));
        assert_eq!(list.find_or_add(|held| *held == "a", || panic!("the value exists")), Some(0));
        assert_eq!(list.find_or_add(|held| *held == "c", || "c"), None, "there is no room");
        assert_eq!((list.get(1), list.get(2), list.iter().count()), (Some(&"b"), None, 2));
    }

    #[test]
    fn concurrent_threads_agree() {
        for _ in 0..50 {
            let list = AppendOnly::with_room_for(8);
            let list = &list;
            std::thread::scope(|scope| {
                for start in 0..4 {
                    scope.spawn(move || {
                        for number in (0..4).map(|number| (number + start) % 4) {
                            let index = list.find_or_add(|held| *held == number, || number).expect("there is room");
                            assert_eq!(list.get(index), Some(&number));
                        }
                    });
                }
            });
            assert_eq!(list.iter().count(), 4, "{list:?}");
        }
    }

    #[test]
    fn values_are_dropped_with_the_list() {
        let value = Arc::new(());
        let list = AppendOnly::with_room_for(4);
        list.find_or_add(|_| false, || value.clone());
        list.find_or_add(|_| false, || value.clone());
        assert_eq!(Arc::strong_count(&value), 3);
        drop(list);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
