//! The reads whose last reply was a large value, so that the next read of such a key does not delay other replies.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const REMEMBERED: usize = 64;

/// A small table of keys, by hash. A collision only makes another read use an extra pipeline, or be forgotten.
#[derive(Debug)]
pub(super) struct LargeReads {
    /// Whether a key was ever remembered, to skip hashing in most programs.
    any: AtomicBool,
    hashes: [AtomicU64; REMEMBERED],
}

impl LargeReads {
    pub(super) fn new() -> LargeReads {
        LargeReads { any: AtomicBool::new(false), hashes: [const { AtomicU64::new(0) }; REMEMBERED] }
    }

    pub(super) fn contain(&self, key: impl Hash) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let hash = hash(key);
        self.slot(hash).load(Ordering::Relaxed) == hash
    }

    #[cold]
    pub(super) fn remember(&self, key: impl Hash) {
        let hash = hash(key);
        self.slot(hash).store(hash, Ordering::Relaxed);
        self.any.store(true, Ordering::Relaxed);
    }

    fn slot(&self, hash: u64) -> &AtomicU64 {
        &self.hashes[hash as usize % REMEMBERED]
    }
}

fn hash(key: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}
