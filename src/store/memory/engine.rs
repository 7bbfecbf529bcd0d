//! One interface to the two caches that may hold the entries: moka, or the fallback.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::ops::compute::Op;

use super::account::Account;
use super::change::Change;
use super::entry::Entry;
use super::fallback::Fallback;
use super::settings::Bound;
use crate::lifecycle::gate;

/// The number of flushes that free removed entries. The collector drops an entry once it has advanced twice since the
/// entry was removed: two flushes, and one to spare.
const FLUSHES: usize = 3;

/// The weight in moka of one entry, if the bound is in entries. It is more than 1, so that scaling loses no fraction.
const SCALE_OF_ENTRIES: u64 = 256;

/// The entries, and the account of their size.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    entries: Entries,
    account: Arc<Account>,
}

#[derive(Clone, Debug)]
enum Entries {
    Moka(moka::sync::Cache<String, Arc<Entry>, foldhash::quality::RandomState>),
    Fallback(Arc<Fallback>),
}

impl Engine {
    pub(super) fn moka(bound: Bound) -> Engine {
        let account = Account::new(bound);
        let weighing = Arc::clone(&account);
        let moka = moka::sync::Cache::builder()
            .expire_after(PerEntry)
            .max_capacity(bound.limit().saturating_mul(scale(bound)))
            .weigher(move |_: &String, entry: &Arc<Entry>| scaled_up(&weighing, entry.weight()))
            .build_with_hasher(foldhash::quality::RandomState::default());
        Engine { entries: Entries::Moka(moka), account }
    }

    pub(super) fn fallback(bound: Bound) -> Engine {
        Engine { entries: Entries::Fallback(Arc::new(Fallback::new(bound))), account: Account::new(bound) }
    }

    pub(super) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Sets the size of the frozen tables, which reduces the limit of the live entries. Must be called inside the gate
    /// if other threads may use the engine.
    pub(super) fn set_frozen(&self, frozen: u64) {
        self.account.set_frozen(frozen);
        if let Entries::Fallback(fallback) = &self.entries {
            fallback.set_limit(self.account.live_limit());
        }
    }

    pub(super) fn needs_collector(&self) -> bool {
        matches!(self.entries, Entries::Moka(_))
    }

    /// Returns the live entry under a key. Must be called inside the gate.
    #[inline]
    pub(super) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        match &self.entries {
            Entries::Moka(moka) => moka.get(key),
            Entries::Fallback(fallback) => fallback.get(key),
        }
    }

    /// Applies the change that `decide` computes from the current entry, under the lock of the entry. Returns the other
    /// result of `decide`. Must be called inside the gate.
    pub(super) fn change<R>(&self, key: &str, decide: impl FnOnce(Option<&Arc<Entry>>) -> (Change, R)) -> R {
        let moka = match &self.entries {
            Entries::Fallback(fallback) => return fallback.change(&self.account, key, decide),
            Entries::Moka(moka) => moka,
        };
        let mut result = None;
        moka.entry_by_ref(key).and_compute_with(|current| {
            let current = current.as_ref().map(|current| current.value());
            let (change, decided) = decide(current);
            result = Some(decided);
            if !matches!(change, Change::Keep) {
                self.account.count_bag();
            }
            match change {
                Change::Remove => Op::Remove,
                change => change.entry(&self.account, key, current).map_or(Op::Nop, Op::Put),
            }
        });
        result.expect("moka calls the closure once")
    }

    /// Frees garbage if the store is over its bound. Must be called inside the gate, after a change.
    #[inline]
    pub(super) fn collect_if_full(&self) {
        if !self.account.is_within_bound() {
            self.collect();
        }
    }

    /// Evicts the entries over the bound, and frees removed entries, unless another thread is accessing them. Must be
    /// called inside the gate. No garbage stays in this thread's own bag, which no other thread could reach: moka
    /// flushes the bag after each change of an entry.
    pub(super) fn collect(&self) {
        let Entries::Moka(moka) = &self.entries else { return };
        moka.run_pending_tasks();
        for _ in 0..FLUSHES {
            crossbeam_epoch::pin().flush();
            if self.account.is_within_bound() {
                return;
            }
        }
    }

    /// Frees removed entries until no more can be freed: a child that frees them would copy their pages. Must be called
    /// inside the gate.
    pub(super) fn collect_all(&self) {
        let Entries::Moka(moka) = &self.entries else { return };
        moka.run_pending_tasks();
        let mut before = u64::MAX;
        while self.account.uncollected() < before {
            before = self.account.uncollected();
            for _ in 0..FLUSHES {
                crossbeam_epoch::pin().flush();
            }
        }
    }

    /// Stops counting the garbage in the bags of threads that do not exist in this process: all that is still counted
    /// after a collection, apart from the entries. Must be called inside the gate, in a child whose collector is alive.
    pub(super) fn write_off_garbage(&self) {
        let Entries::Moka(moka) = &self.entries else { return };
        moka.run_pending_tasks();
        for _ in 0..FLUSHES {
            crossbeam_epoch::pin().flush();
        }
        self.account.write_off_all_but(scaled_down(&self.account, moka.weighted_size()));
    }

    /// Returns the entries, in no particular order. Must be called outside of the gate, which is entered for one entry
    /// at a time.
    pub(super) fn entries(&self) -> Vec<(Arc<String>, Arc<Entry>)> {
        match &self.entries {
            Entries::Fallback(fallback) => {
                let _pass = gate::enter();
                fallback.entries()
            }
            Entries::Moka(moka) => {
                let mut entries = moka.iter();
                let next = || {
                    let _pass = gate::enter();
                    entries.next()
                };
                std::iter::from_fn(next).collect()
            }
        }
    }

    /// Removes the entries whose keys start with `prefix`. Must be called outside of the gate, which is entered for one
    /// entry at a time.
    pub(super) fn clear(&self, prefix: &str) {
        match &self.entries {
            Entries::Fallback(fallback) => {
                let _pass = gate::enter();
                fallback.clear(prefix);
            }
            Entries::Moka(moka) => {
                let mut entries = moka.iter();
                loop {
                    let _pass = gate::enter();
                    let Some((key, _)) = entries.next() else { return };
                    if key.starts_with(prefix) {
                        moka.invalidate(&**key);
                    }
                }
            }
        }
    }
}

fn scale(bound: Bound) -> u64 {
    match bound {
        Bound::Bytes(_) => 1,
        Bound::Entries(_) => SCALE_OF_ENTRIES,
    }
}

/// Returns the weight of an entry in moka. moka's capacity is fixed, so if a part of the bound is frozen, each entry
/// weighs more in proportion.
fn scaled_up(account: &Account, weight: u32) -> u32 {
    let (limit, left) = (u128::from(account.bound().limit()), u128::from(account.live_limit()));
    u32::try_from(u128::from(weight) * u128::from(scale(account.bound())) * limit / left).unwrap_or(u32::MAX)
}

fn scaled_down(account: &Account, weight: u64) -> u64 {
    let (limit, left) = (u128::from(account.bound().limit()), u128::from(account.live_limit()));
    u64::try_from(u128::from(weight) * left / limit.max(1) / u128::from(scale(account.bound()))).unwrap_or(u64::MAX)
}

/// Passes each entry's own time to live to moka.
struct PerEntry;

impl PerEntry {
    fn time_left(entry: &Entry, now: Instant) -> Option<Duration> {
        entry.expires_at.map(|expires_at| expires_at.saturating_duration_since(now))
    }
}

impl moka::Expiry<String, Arc<Entry>> for PerEntry {
    fn expire_after_create(&self, _: &String, entry: &Arc<Entry>, created_at: Instant) -> Option<Duration> {
        PerEntry::time_left(entry, created_at)
    }

    fn expire_after_update(
        &self,
        _: &String,
        entry: &Arc<Entry>,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        PerEntry::time_left(entry, now)
    }
}
