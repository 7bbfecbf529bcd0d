//! Which reads were last answered with a large value, so that the next one of them keeps nobody waiting.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const REMEMBERED: usize = 64;

/// A few of them, by their hashes. A collision costs a read a connection of its own, and no more.
#[derive(Debug)]
pub(super) struct LargeReads {
    /// Whether there are any: most programs have none.
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
        self.place(hash).load(Ordering::Relaxed) == hash
    }

    #[cold]
    pub(super) fn remember(&self, key: impl Hash) {
        let hash = hash(key);
        self.place(hash).store(hash, Ordering::Relaxed);
        self.any.store(true, Ordering::Relaxed);
    }

    fn place(&self, hash: u64) -> &AtomicU64 {
        &self.hashes[hash as usize % REMEMBERED]
    }
}

fn hash(key: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}
