//! A count that forked processes keep together.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// Counts for its maker and for every process that was forked from it since, also for those that are killed. It is never
/// given back.
#[derive(Clone, Copy, Debug)]
pub struct Tally(&'static AtomicUsize);

impl Default for Tally {
    fn default() -> Tally {
        Tally::new()
    }
}

impl Tally {
    pub fn new() -> Tally {
        let length = NonZeroUsize::new(size_of::<AtomicUsize>()).expect("more than nothing");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: makes a mapping where there was none.
        let page = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_SHARED) }.expect("a page of memory");
        // SAFETY: a page is aligned for it and begins as zeros, which is a valid count; it is never unmapped.
        Tally(unsafe { page.cast().as_ref() })
    }

    /// Answers what the count was.
    pub fn raise(self, by: usize) -> usize {
        self.0.fetch_add(by, Ordering::SeqCst)
    }

    pub fn count(self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}
