//! Counters of a process's use of a cache.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lifecycle::{Refresh, sockets_cut, thread_stripe};
use crate::server_stats::ServerStats;

mod export;

/// Statistics of this process's use of a cache, since the process began: a forked child counts from zero.
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Reads that found an entry, a stale one included.
    pub hits: u64,
    /// Reads that found no entry.
    pub misses: u64,
    /// Hits treated as misses, because the bytes were not a value of the wanted type and version.
    pub undecodable: u64,
    /// Reads that found a stale value.
    pub stale: u64,
    /// Keys passed to the loaders of [`fetch`](crate::Cache::fetch) and its variants.
    pub loads: u64,
    /// Keys that those loaders failed to load.
    pub failed_loads: u64,
    /// Fetches that found no value and got one from the load of another caller, in this process or in another one.
    pub coalesced: u64,
    /// Failed operations, whether or not the caller got the error.
    pub errors: u64,
    /// How often all connections were replaced: once if this process was forked, and at each
    /// [`reset`](crate::Cache::reset) and [`reconnect`](crate::Cache::reconnect).
    pub reconnects: u64,
    /// Inherited sockets that this process has cut: all sockets of this crate, whichever cache they belonged to.
    pub sockets_cut: u64,
    /// The servers of the store, in the order of its URL; empty for a store without servers.
    pub servers: Vec<ServerStats>,
}

/// Formats the counters in one line, for a log.
///
/// ```
/// use prefork_cache::{Cache, stores::MemoryStore};
///
/// let cache = Cache::builder(MemoryStore::new()).build();
/// cache.blocking().get::<String>("motd")?;
/// assert!(cache.stats().to_string().starts_with("hits 0, misses 1, undecodable 0, stale 0, loads 0"));
/// # Ok::<(), prefork_cache::Error>(())
/// ```
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stats { hits, misses, undecodable, stale, loads, .. } = self;
        let Stats { failed_loads, coalesced, errors, reconnects, sockets_cut, .. } = self;
        write!(f, "hits {hits}, misses {misses}, undecodable {undecodable}, stale {stale}, loads {loads}, ")?;
        write!(f, "failed loads {failed_loads}, coalesced {coalesced}, errors {errors}, ")?;
        write!(f, "reconnects {reconnects}, sockets cut {sockets_cut}")
    }
}

const STRIPES: usize = 8;

/// Counters in stripes, so that threads that count at the same time do not contend for one cache line.
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
    stale: AtomicU64,
    loads: AtomicU64,
    failed_loads: AtomicU64,
    coalesced: AtomicU64,
    errors: AtomicU64,
    reconnects: AtomicU64,
}

impl Counters {
    #[inline]
    pub(super) fn looked_up(&self, found: bool) {
        let stripe = self.own_stripe();
        count(if found { &stripe.hits } else { &stripe.misses });
    }

    pub(super) fn looked_up_many(&self, hits: usize, misses: usize) {
        let stripe = self.own_stripe();
        stripe.hits.fetch_add(hits as u64, Ordering::Relaxed);
        stripe.misses.fetch_add(misses as u64, Ordering::Relaxed);
    }

    pub(super) fn undecodable(&self) {
        count(&self.own_stripe().undecodable);
    }

    #[cold]
    pub(super) fn stale(&self) {
        count(&self.own_stripe().stale);
    }

    pub(super) fn loaded(&self, keys: usize) {
        self.own_stripe().loads.fetch_add(keys as u64, Ordering::Relaxed);
    }

    pub(super) fn load_failed(&self) {
        count(&self.own_stripe().failed_loads);
    }

    pub(super) fn coalesced(&self) {
        count(&self.own_stripe().coalesced);
    }

    pub(super) fn failed(&self) {
        count(&self.own_stripe().errors);
    }

    pub(super) fn reconnected(&self) {
        count(&self.own_stripe().reconnects);
    }

    /// Returns the sums over all stripes. `refreshed` is how the store was refreshed in this process, if it was forked.
    pub(super) fn read(&self, refreshed: Option<Refresh>, servers: Vec<ServerStats>) -> Stats {
        let sum = |counter: fn(&Stripe) -> &AtomicU64| -> u64 {
            self.stripes.iter().map(|stripe| counter(stripe).load(Ordering::Relaxed)).sum()
        };
        Stats {
            hits: sum(|stripe| &stripe.hits),
            misses: sum(|stripe| &stripe.misses),
            undecodable: sum(|stripe| &stripe.undecodable),
            stale: sum(|stripe| &stripe.stale),
            loads: sum(|stripe| &stripe.loads),
            failed_loads: sum(|stripe| &stripe.failed_loads),
            coalesced: sum(|stripe| &stripe.coalesced),
            errors: sum(|stripe| &stripe.errors),
            reconnects: sum(|stripe| &stripe.reconnects) + u64::from(refreshed.is_some_and(|how| how.has_reset())),
            sockets_cut: sockets_cut() as u64,
            servers,
        }
    }

    #[inline]
    fn own_stripe(&self) -> &Stripe {
        &self.stripes[thread_stripe() % STRIPES]
    }
}

#[inline]
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
