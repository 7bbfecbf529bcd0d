//! A counter that forked processes share.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// A counter shared by its creator and all processes forked from it since. It keeps the counts of killed processes. Its
/// memory is never freed.
#[derive(Clone, Copy, Debug)]
pub struct Tally(&'static AtomicUsize);

impl Default for Tally {
    fn default() -> Tally {
        Tally::new()
    }
}

impl Tally {
    pub fn new() -> Tally {
        let length = NonZeroUsize::new(size_of::<AtomicUsize>()).expect("a positive size");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: creates a new mapping, without an address hint.
        let page = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_SHARED) }.expect("a page of memory");
        // SAFETY: a page is aligned for it and begins as zeros, which is a valid count; it is never unmapped.
        Tally(unsafe { page.cast().as_ref() })
    }

    /// Adds to the count, and returns the previous count.
    pub fn raise(self, by: usize) -> usize {
        self.0.fetch_add(by, Ordering::SeqCst)
    }

    pub fn count(self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}
