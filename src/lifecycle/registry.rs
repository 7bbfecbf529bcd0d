//! A list that is read and changed at any time, also in a child of a process that was just changing it.
//!
//! Copy on write: the list is never changed in place, a new one is put in its place with one store. So a child inherits
//! either the old list or the new one, whole, whatever a vanished thread was doing. The lock that orders writers, and lets a
//! reader take its copy before a writer frees the old list, belongs to a generation: a child makes its own and never waits
//! for its parent's. A list that a vanished writer was about to free is leaked.
//!
//! Signals are blocked while the lock is held or waited for. A handler that forked there would come back to a section whose lock
//! means nothing in the child: what the child had changed meanwhile, in the handler or in a thread of its own, would be
//! overwritten, and a list be freed while it is read.

use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::generation::with_signals_blocked;
use super::process_local::ProcessLocal;
use crate::sync::Lock;

type List<T> = Vec<Arc<T>>;

/// A copy-on-write list of shared items.
pub(crate) struct Registry<T> {
    list: AtomicPtr<List<T>>,
    turn: ProcessLocal<Lock<()>>,
}

impl<T> Registry<T> {
    pub(crate) const fn new() -> Registry<T> {
        Registry { list: AtomicPtr::new(ptr::null_mut()), turn: ProcessLocal::new() }
    }

    /// The items as they are now, in the order of their insertion.
    pub(crate) fn snapshot(&self) -> List<T> {
        self.in_turn(|| self.copy())
    }

    pub(crate) fn insert(&self, item: Arc<T>) {
        self.in_turn(|| {
            let mut list = self.copy();
            list.push(item);
            self.replace(list);
        });
    }

    /// Inserts an item unless there is one that `is_same` picks. Returns that one, if so: the last of them.
    pub(crate) fn insert_unless(&self, item: Arc<T>, is_same: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        self.in_turn(|| {
            let mut list = self.copy();
            if let Some(same) = list.iter().rev().find(|item| is_same(item)) {
                return Some(Arc::clone(same));
            }
            // Not the item itself: one that is not wanted is dropped outside of the lock.
            list.push(Arc::clone(&item));
            self.replace(list);
            None
        })
    }

    /// Inserts an item, and removes what `is_same` picks: no reader sees both, or neither.
    pub(crate) fn insert_instead(&self, item: Arc<T>, is_same: impl Fn(&T) -> bool) {
        let removed = self.in_turn(|| {
            let (dropped, mut kept): (List<T>, List<T>) = self.copy().into_iter().partition(|item| is_same(item));
            kept.push(item);
            self.replace(kept);
            dropped
        });
        // Outside of the lock: what an item drops may use the registry.
        drop(removed);
    }

    /// Removes what `unwanted` picks. Answers whether there was anything.
    pub(crate) fn remove(&self, unwanted: impl Fn(&Arc<T>) -> bool) -> bool {
        let removed = self.in_turn(|| {
            let (dropped, kept): (List<T>, List<T>) = self.copy().into_iter().partition(unwanted);
            if !dropped.is_empty() {
                self.replace(kept);
            }
            dropped
        });
        // They are dropped outside of the lock: what an item drops may use the registry.
        !removed.is_empty()
    }

    /// Does something under the lock, in the middle of which this thread does not fork.
    fn in_turn<R>(&self, section: impl FnOnce() -> R) -> R {
        with_signals_blocked(|| {
            let _turn = self.turn.get_or_init(|| Lock::new("registry", ())).lock();
            section()
        })
    }

    /// Only under the lock.
    fn copy(&self) -> List<T> {
        let list = self.list.load(Ordering::Acquire);
        // SAFETY: lists are freed only by `replace`, under the lock that the caller holds, and by `drop`.
        let copy = unsafe { list.as_ref() }.cloned().unwrap_or_default();
        #[cfg(feature = "__injection")]
        crate::injection::reach("copied registry");
        copy
    }

    /// Only under the lock.
    fn replace(&self, list: List<T>) {
        let old = self.list.swap(Box::into_raw(Box::new(list)), Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: made by `Box::into_raw` here, in an earlier call; readers copy under the lock that the caller holds.
            drop(unsafe { Box::from_raw(old) });
        }
    }
}

impl<T> Drop for Registry<T> {
    fn drop(&mut self) {
        let list = *self.list.get_mut();
        if !list.is_null() {
            // SAFETY: made by `Box::into_raw`, and nobody else has a reference.
            drop(unsafe { Box::from_raw(list) });
        }
    }
}

impl<T> fmt::Debug for Registry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Registry;

    #[test]
    fn items_come_in_the_order_of_their_insertion_and_go_once() {
        let registry = Registry::new();
        assert!(registry.snapshot().is_empty());
        for number in 1..=3 {
            registry.insert(Arc::new(number));
        }
        assert!(registry.remove(|item| **item == 2));
        assert!(!registry.remove(|item| **item == 2));
        let left: Vec<i32> = registry.snapshot().iter().map(|item| **item).collect();
        assert_eq!(left, [1, 3]);
    }

    #[test]
    fn an_item_may_take_the_place_of_others_or_leave_it_to_them() {
        let registry = Registry::new();
        let items = || registry.snapshot().iter().map(|item| **item).collect::<Vec<i32>>();
        assert_eq!(registry.insert_unless(Arc::new(1), |item| *item < 10), None);
        registry.insert(Arc::new(2));
        assert_eq!(registry.insert_unless(Arc::new(3), |item| *item < 10).as_deref(), Some(&2));
        assert_eq!(items(), [1, 2]);
        registry.insert(Arc::new(10));
        registry.insert_instead(Arc::new(4), |item| *item < 10);
        assert_eq!(items(), [10, 4]);
    }

    #[test]
    fn readers_and_writers_do_not_disturb_each_other() {
        let registry = Registry::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let registry = &registry;
                scope.spawn(move || {
                    for round in 0..500 {
                        registry.insert(Arc::new((thread, round)));
                        assert!(registry.snapshot().iter().any(|item| **item == (thread, round)));
                        assert!(registry.remove(|item| **item == (thread, round)));
                    }
                });
            }
        });
        assert!(registry.snapshot().is_empty());
    }
}
