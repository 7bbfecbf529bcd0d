//! A place beside a value for what is made of it, by each process for itself.
//!
//! Smaller than a [`ProcessLocal`](super::ProcessLocal), and without a lock: threads that make it at the same time all
//! make it, and one of them has its own kept. It is published whole by a compare-and-swap, so a fork finds it filled or
//! not. What another generation has filled in may have locks that are held for ever, or be half changed: it is neither
//! handed out nor dropped, but leaked.

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

// SAFETY: what is published is only read, by shared reference (`T: Sync`), and dropped by whoever has the slot to itself
// (`T: Send`).
unsafe impl<T: Send + Sync> Sync for ProcessSlot<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for ProcessSlot<T> {}

impl<T> ProcessSlot<T> {
    pub(crate) const fn new() -> ProcessSlot<T> {
        ProcessSlot { filled: AtomicPtr::new(ptr::null_mut()), owns: PhantomData }
    }

    /// What this process has filled in.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        let filled = self.filled.load(Ordering::Acquire);
        // SAFETY: made by `Box::into_raw` in `fill`, and freed only by `drop`, which has the only reference.
        let filled = unsafe { filled.as_ref() }?;
        (filled.generation == generation()).then_some(&filled.value)
    }

    /// Fills in a value, unless this process has one.
    pub(crate) fn fill(&self, value: T) {
        let known = self.filled.load(Ordering::Acquire);
        if self.get().is_some() {
            return;
        }
        let fresh = Box::into_raw(Box::new(Filled { generation: generation(), value }));
        if self.filled.compare_exchange(known, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: made above and never published.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

impl<T> Drop for ProcessSlot<T> {
    fn drop(&mut self) {
        if self.get().is_some() {
            // SAFETY: made by `Box::into_raw` in `fill`, of this generation, and nobody else has a reference.
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
    fn threads_that_fill_at_once_agree() {
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
