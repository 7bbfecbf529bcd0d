//! What a process has done through a cache.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::lifecycle::{Refresh, thread_stripe};

/// What this process has done through a cache since it began: a forked child counts from zero.
///
/// ```
/// use prefork_cache::{Cache, stores::MemoryStore};
///
/// let cache = Cache::builder(MemoryStore::new()).build();
/// cache.blocking().get::<String>("motd")?;
/// let stats = cache.stats();
/// println!("{} of {} reads were hits", stats.hits, stats.hits + stats.misses);
/// # Ok::<(), prefork_cache::Error>(())
/// ```
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

const STRIPES: usize = 8;

/// Striped, so that threads that hit at the same time do not wait for one cache line.
#[derive(Default)]
pub(super) struct Counters {
    stripes: [Stripe; STRIPES],
}

#[derive(Default)]
#[repr(align(128))]
struct Stripe {
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
        let own = self.own();
        count(if found { &own.hits } else { &own.misses });
    }

    pub(super) fn undecodable(&self) {
        count(&self.own().undecodable);
    }

    pub(super) fn loaded(&self) {
        count(&self.own().loads);
    }

    pub(super) fn failed(&self) {
        count(&self.own().errors);
    }

    pub(super) fn reconnected(&self) {
        count(&self.own().reconnects);
    }

    /// `refreshed` is how the store came into this process, if it came through a fork.
    pub(super) fn read(&self, refreshed: Option<Refresh>) -> Stats {
        let sum = |counter: fn(&Stripe) -> &AtomicU64| -> u64 {
            self.stripes.iter().map(|stripe| counter(stripe).load(Ordering::Relaxed)).sum()
        };
        Stats {
            hits: sum(|stripe| &stripe.hits),
            misses: sum(|stripe| &stripe.misses),
            undecodable: sum(|stripe| &stripe.undecodable),
            loads: sum(|stripe| &stripe.loads),
            errors: sum(|stripe| &stripe.errors),
            reconnects: sum(|stripe| &stripe.reconnects) + u64::from(refreshed == Some(Refresh::Reset)),
        }
    }

    #[inline]
    fn own(&self) -> &Stripe {
        &self.stripes[thread_stripe() % STRIPES]
    }
}

#[inline]
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
