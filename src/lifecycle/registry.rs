//! A list that can be read and changed at any time, also in a child of a process that was just changing it.
//!
//! Copy on write: the list is never changed in place. A new list replaces it with one store, so a child inherits either
//! the old or the new list, complete, whatever a vanished thread was doing. A lock orders writers, and lets a reader
//! make its copy before a writer frees the old list. It belongs to a generation: a child creates its own and never
//! waits for its parent's. A list that a vanished writer was about to free is leaked.
//!
//! Signals are blocked while the lock is held or waited for. Otherwise a handler that forks could return, in the child,
//! to a section that holds the parent's lock. The section would overwrite changes that the child has made in the
//! meantime, in the handler or in another thread, or free a list while it is read.

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
    lock: ProcessLocal<Lock<()>>,
}

impl<T> Registry<T> {
    pub(crate) const fn new() -> Registry<T> {
        Registry { list: AtomicPtr::new(ptr::null_mut()), lock: ProcessLocal::new() }
    }

    /// Returns the current items, in the order of their insertion.
    pub(crate) fn snapshot(&self) -> List<T> {
        self.under_lock(|| self.copy())
    }

    pub(crate) fn insert(&self, item: Arc<T>) {
        self.under_lock(|| {
            let mut list = self.copy();
            list.push(item);
            self.replace(list);
        });
    }

    /// Inserts an item unless there is one that `is_same` selects. Returns that one if so, the last if there are
    /// several.
    pub(crate) fn insert_unless(&self, item: Arc<T>, is_same: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        self.under_lock(|| {
            let mut list = self.copy();
            if let Some(same) = list.iter().rev().find(|item| is_same(item)) {
                return Some(Arc::clone(same));
            }
            // A clone: an item that is not inserted must be dropped outside the lock.
            list.push(Arc::clone(&item));
            self.replace(list);
            None
        })
    }

    /// Inserts an item, and removes those that `is_same` selects. No reader sees both, or neither.
    pub(crate) fn insert_instead(&self, item: Arc<T>, is_same: impl Fn(&T) -> bool) {
        let removed = self.under_lock(|| {
            let (dropped, mut kept): (List<T>, List<T>) = self.copy().into_iter().partition(|item| is_same(item));
            kept.push(item);
            self.replace(kept);
            dropped
        });
        // Outside the lock: the drop of an item may use the registry.
        drop(removed);
    }

    /// Removes the items that `unwanted` selects. Returns whether there were any.
    pub(crate) fn remove(&self, unwanted: impl Fn(&Arc<T>) -> bool) -> bool {
        let removed = self.under_lock(|| {
            let (dropped, kept): (List<T>, List<T>) = self.copy().into_iter().partition(unwanted);
            if !dropped.is_empty() {
                self.replace(kept);
            }
            dropped
        });
        // The items are dropped outside the lock: the drop of an item may use the registry.
        !removed.is_empty()
    }

    /// Runs a section under the lock, with signals blocked so that this thread does not fork in it.
    fn under_lock<R>(&self, section: impl FnOnce() -> R) -> R {
        with_signals_blocked(|| {
            let _guard = self.lock.get_or_init(|| Lock::new("registry", ())).lock();
            section()
        })
    }

    /// Must be called under the lock.
    fn copy(&self) -> List<T> {
        let list = self.list.load(Ordering::Acquire);
        // SAFETY: lists are freed only by `replace`, under the lock that the caller holds, and by `drop`.
        let copy = unsafe { list.as_ref() }.cloned().unwrap_or_default();
        #[cfg(feature = "__injection")]
        crate::injection::reach("copied registry");
        copy
    }

    /// Must be called under the lock.
    fn replace(&self, list: List<T>) {
        let old = self.list.swap(Box::into_raw(Box::new(list)), Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: made here by `Box::into_raw`, in an earlier call. Readers copy under the lock that the caller
            // holds.
            drop(unsafe { Box::from_raw(old) });
        }
    }
}

impl<T> Drop for Registry<T> {
    fn drop(&mut self) {
        let list = *self.list.get_mut();
        if !list.is_null() {
            // SAFETY: made by `Box::into_raw`, and this is the only reference.
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
    fn items_are_in_insertion_order_and_removed_once() {
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
    fn insert_unless_and_insert_instead_keep_one_item() {
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
    fn concurrent_readers_and_writers() {
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
