//! What a process has done through a cache.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::lifecycle::Refresh;

/// What this process has done through a cache since it began: a forked child counts from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Reads that found an entry.
    pub hits: u64,
    /// Reads that found none.
    pub misses: u64,
    /// Hits that were treated as misses, since their bytes were not a value of the wanted type and version.
    pub undecodable: u64,
    /// Loaders that [`fetch`](crate::Cache::fetch) has run.
    pub loads: u64,
    /// Operations that failed, whether or not the caller heard of it.
    pub errors: u64,
    /// How often the connections were begun anew: once where this process was forked, and with each
    /// [`reset`](crate::Cache::reset) and [`reconnect`](crate::Cache::reconnect).
    pub reconnects: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    undecodable: AtomicU64,
    loads: AtomicU64,
    errors: AtomicU64,
    reconnects: AtomicU64,
}

impl Counters {
    #[inline]
    pub(super) fn looked_up(&self, found: bool) {
        count(if found { &self.hits } else { &self.misses });
    }

    pub(super) fn undecodable(&self) {
        count(&self.undecodable);
    }

    pub(super) fn loaded(&self) {
        count(&self.loads);
    }

    pub(super) fn failed(&self) {
        count(&self.errors);
    }

    pub(super) fn reconnected(&self) {
        count(&self.reconnects);
    }

    /// `refreshed` is how the store came into this process, if it came through a fork.
    pub(super) fn read(&self, refreshed: Option<Refresh>) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            hits: read(&self.hits),
            misses: read(&self.misses),
            undecodable: read(&self.undecodable),
            loads: read(&self.loads),
            errors: read(&self.errors),
            reconnects: read(&self.reconnects) + u64::from(refreshed == Some(Refresh::Reset)),
        }
    }
}

#[inline]
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
