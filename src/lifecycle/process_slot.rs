//! A slot beside a value, for data that each process derives from it.
//!
//! It is smaller than a [`ProcessLocal`](super::ProcessLocal), and has no lock: threads that derive the data at the
//! same time all do so, and the data of one of them is stored. It is published as a whole by a compare-and-swap, so a
//! fork finds the slot filled or not. Data of another generation may contain locks that are held forever, or be half
//! changed. It is neither returned nor dropped, but leaked.

use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::generation::generation;

pub(crate) struct ProcessSlot<T> {
    filled: AtomicPtr<Filled<T>>,
    owns: PhantomData<Filled<T>>,
}

struct Filled<T> {
    generation: u64,
    value: T,
}

// SAFETY: published data is only read, by shared reference (`T: Sync`), and dropped by the exclusive owner of the slot
// (`T: Send`).
unsafe impl<T: Send + Sync> Sync for ProcessSlot<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for ProcessSlot<T> {}

impl<T> ProcessSlot<T> {
    pub(crate) const fn new() -> ProcessSlot<T> {
        ProcessSlot { filled: AtomicPtr::new(ptr::null_mut()), owns: PhantomData }
    }

    /// Returns the value that this process has stored.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        let filled = self.filled.load(Ordering::Acquire);
        // SAFETY: made by `Box::into_raw` in `fill`, and freed only by `drop`, which has the only reference.
        let filled = unsafe { filled.as_ref() }?;
        (filled.generation == generation()).then_some(&filled.value)
    }

    /// Stores a value, unless this process has one.
    pub(crate) fn fill(&self, value: T) {
        let known = self.filled.load(Ordering::Acquire);
        if self.get().is_some() {
            return;
        }
        let fresh = Box::into_raw(Box::new(Filled { generation: generation(), value }));
        if self.filled.compare_exchange(known, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: allocated above and never published.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

impl<T> Drop for ProcessSlot<T> {
    fn drop(&mut self) {
        if self.get().is_some() {
            // SAFETY: made by `Box::into_raw` in `fill`, of this generation, and this is the only reference.
            drop(unsafe { Box::from_raw(*self.filled.get_mut()) });
        }
    }
}

impl<T> fmt::Debug for ProcessSlot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessSlot").field("is_filled", &self.get().is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::ProcessSlot;

    #[test]
    fn the_first_value_stays_and_is_dropped_with_the_slot() {
        let (first, second) = (Arc::new(1), Arc::new(2));
        let slot = ProcessSlot::new();
        assert_eq!(slot.get(), None);
        slot.fill(Arc::clone(&first));
        slot.fill(Arc::clone(&second));
        assert_eq!(slot.get(), Some(&first));
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (2, 1));
        drop(slot);
        assert_eq!(Arc::strong_count(&first), 1);
    }

    #[test]
    fn concurrent_threads_agree() {
        for _ in 0..200 {
            let slot = ProcessSlot::new();
            std::thread::scope(|scope| {
                for number in 0..4 {
                    let slot = &slot;
                    scope.spawn(move || slot.fill(number));
                }
            });
            assert!(slot.get().is_some());
        }
    }
}
