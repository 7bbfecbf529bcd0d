//! What a process has done through a cache.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lifecycle::{Refresh, sockets_cut, thread_stripe};
use crate::server_stats::ServerStats;

mod text;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Reads that found an entry, stale ones too.
    pub hits: u64,
    /// Reads that found none.
    pub misses: u64,
    /// Hits that were treated as misses, since their bytes were not a value of the wanted type and version.
    pub undecodable: u64,
    /// Reads that found a stale value.
    pub stale: u64,
    /// Keys that the loaders of [`fetch`](crate::Cache::fetch) and its kin were asked for.
    pub loads: u64,
    /// Keys that they failed to load.
    pub failed_loads: u64,
    /// Fetches that found no value and were answered by another's load, in this process or in another one.
    pub coalesced: u64,
    /// Operations that failed, whether or not the caller heard of it.
    pub errors: u64,
    /// How often the connections were begun anew: once where this process was forked, and with each
    /// [`reset`](crate::Cache::reset) and [`reconnect`](crate::Cache::reconnect).
    pub reconnects: u64,
    /// How many sockets this process has inherited and cut: all of this crate's, whichever cache's they were.
    pub sockets_cut: u64,
    /// The servers of the store, in the order of its URL; none for a store without.
    pub servers: Vec<ServerStats>,
}

/// In one line, for a log.
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
        let own = self.own();
        count(if found { &own.hits } else { &own.misses });
    }

    pub(super) fn looked_up_many(&self, hits: usize, misses: usize) {
        let own = self.own();
        own.hits.fetch_add(hits as u64, Ordering::Relaxed);
        own.misses.fetch_add(misses as u64, Ordering::Relaxed);
    }

    pub(super) fn undecodable(&self) {
        count(&self.own().undecodable);
    }

    #[cold]
    pub(super) fn stale(&self) {
        count(&self.own().stale);
    }

    pub(super) fn loaded(&self, keys: usize) {
        self.own().loads.fetch_add(keys as u64, Ordering::Relaxed);
    }

    pub(super) fn load_failed(&self) {
        count(&self.own().failed_loads);
    }

    pub(super) fn coalesced(&self) {
        count(&self.own().coalesced);
    }

    pub(super) fn failed(&self) {
        count(&self.own().errors);
    }

    pub(super) fn reconnected(&self) {
        count(&self.own().reconnects);
    }

    /// `refreshed` is how the store came into this process, if it came through a fork.
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
    fn own(&self) -> &Stripe {
        &self.stripes[thread_stripe() % STRIPES]
    }
}

#[inline]
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
