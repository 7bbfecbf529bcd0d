//! The exact size of all entries of a store that are not freed yet.
//!
//! moka's own weight does not measure memory. An entry that moka has removed stays in one of crossbeam's garbage bags
//! until every pinned thread has moved on, and an idle thread keeps its bag. So an entry is counted from when it is
//! created until it is dropped, on whichever thread that happens. The counter is striped, so that writers do not
//! contend for one cache line.
//!
//! The bags take memory themselves, 2 kB each, and moka fills one with each change. They are counted beside the
//! entries: while a pinned thread waits for the processor, no bag is emptied, and the bags take more memory than the
//! small values in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::settings::Bound;
use crate::lifecycle::thread_stripe;

const STRIPES: usize = 8;

/// The size in bytes of the bags that one change leaves to the collector, without the entries in them: a bag for the
/// replaced entry, one for the lock of the key, and one or two for evicted entries.
const BAGS_PER_CHANGE: u64 = 8192;

/// An entry that is smaller than this fraction of the bound is stored without a reservation, so several threads may
/// store one each in the last free room.
const UNRESERVED_FRACTION: u64 = 128;

/// The number of uncollected changes that are allowed whatever the bound: their bags are not counted.
const UNCOUNTED_CHANGES: u64 = 16;

/// The counters of a store, in the unit of the bound: bytes, or entries.
#[derive(Debug)]
pub(super) struct Account {
    bound: Bound,
    stripes: [Stripe; STRIPES],
    /// Inherited garbage in the bags of threads that do not exist in this process. It is never dropped here.
    written_off: AtomicI64,
    refused: AtomicU64,
    frozen: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    used: AtomicI64,
    /// The number of changes whose bags are not emptied yet.
    uncollected: AtomicI64,
}

impl Account {
    pub(super) fn new(bound: Bound) -> Arc<Account> {
        let stripes = [const { Stripe { used: AtomicI64::new(0), uncollected: AtomicI64::new(0) } }; STRIPES];
        Arc::new(Account {
            bound,
            stripes,
            written_off: AtomicI64::new(0),
            refused: AtomicU64::new(0),
            frozen: AtomicU64::new(0),
        })
    }

    pub(super) fn bound(&self) -> Bound {
        self.bound
    }

    /// Returns whether the entries and the garbage are within the bound.
    pub(super) fn is_within_bound(&self) -> bool {
        self.total() <= self.bound.limit()
    }

    /// Returns whether there is room for another entry. The limit is a sixteenth above the bound, since overwritten
    /// entries are freed later, and a quarter above it if the bags are counted.
    pub(super) fn has_room(&self) -> bool {
        self.has_room_beside(0)
    }

    fn has_room_beside(&self, reserved: u64) -> bool {
        let (limit, total) = (self.bound.limit(), self.total().saturating_sub(reserved));
        let bags = match self.bound {
            Bound::Bytes(_) => self.uncollected().saturating_sub(UNCOUNTED_CHANGES) * BAGS_PER_CHANGE,
            Bound::Entries(_) => 0,
        };
        total <= limit.saturating_add(limit / 16) && total + bags <= limit.saturating_add(limit / 4)
    }

    /// Reserves room for an entry of this weight, until the reservation is dropped. Returns `None` if there is no room.
    pub(super) fn reserve(self: &Arc<Self>, weight: u64) -> Option<Reservation> {
        if weight <= self.bound.limit() / UNRESERVED_FRACTION {
            return self.has_room().then_some(Reservation(None));
        }
        let charge = Charge::new(self, weight);
        self.has_room_beside(weight).then(|| Reservation(Some(charge)))
    }

    /// Returns the size of the entries, live and frozen, and of the garbage.
    pub(super) fn total(&self) -> u64 {
        let counted: i64 = self.stripes.iter().map(|stripe| stripe.used.load(Ordering::Relaxed)).sum();
        u64::try_from(counted - self.written_off.load(Ordering::Relaxed)).unwrap_or(0) + self.frozen()
    }

    /// Returns the size of the frozen tables.
    pub(super) fn frozen(&self) -> u64 {
        self.frozen.load(Ordering::Relaxed)
    }

    pub(super) fn set_frozen(&self, frozen: u64) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// Returns the part of the bound that the frozen tables leave to the live entries.
    pub(super) fn live_limit(&self) -> u64 {
        self.bound.limit().saturating_sub(self.frozen()).max(1)
    }

    /// Returns the number of changes whose bags the collector has not emptied yet.
    pub(super) fn uncollected(&self) -> u64 {
        let counted: i64 = self.stripes.iter().map(|stripe| stripe.uncollected.load(Ordering::Relaxed)).sum();
        u64::try_from(counted).unwrap_or(0)
    }

    /// Counts a change of this thread until the collector has emptied the thread's current bag.
    pub(super) fn count_bag(self: &Arc<Self>) {
        let account = Arc::clone(self);
        let stripe = thread_stripe() % STRIPES;
        self.stripes[stripe].uncollected.fetch_add(1, Ordering::Relaxed);
        crossbeam_epoch::pin().defer(move || account.stripes[stripe].uncollected.fetch_sub(1, Ordering::Relaxed));
    }

    /// Stops counting everything but `alive` and the frozen tables.
    pub(super) fn write_off_all_but(&self, alive: u64) {
        let garbage = self.total().saturating_sub(alive + self.frozen());
        self.written_off.fetch_add(signed(garbage), Ordering::Relaxed);
        self.stripes.iter().for_each(|stripe| stripe.uncollected.store(0, Ordering::Relaxed));
    }

    #[cold]
    pub(super) fn count_refusal(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn add(&self, amount: i64) {
        self.stripes[thread_stripe() % STRIPES].used.fetch_add(amount, Ordering::Relaxed);
    }
}

/// The size of one entry, which is counted until the charge is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    account: Arc<Account>,
    amount: u64,
}

impl Charge {
    pub(super) fn new(account: &Arc<Account>, amount: u64) -> Charge {
        account.add(signed(amount));
        Charge { account: Arc::clone(account), amount }
    }

    pub(super) fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.add(-signed(self.amount));
    }
}

/// Room that other threads cannot use until the reservation is dropped.
#[derive(Debug)]
pub(super) struct Reservation(#[expect(dead_code, reason = "it counts until it is dropped")] Option<Charge>);

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Account, Charge};
    use crate::store::memory::settings::Bound;

    #[test]
    fn an_entry_that_any_thread_drops_is_no_longer_counted() {
        let account = Account::new(Bound::Bytes(1_000));
        let charges: Vec<Charge> = (0..10).map(|_| Charge::new(&account, 130)).collect();
        assert_eq!((account.total(), account.is_within_bound(), account.has_room()), (1_300, false, false));
        std::thread::spawn(move || drop(charges)).join().unwrap();
        assert_eq!((account.total(), account.is_within_bound(), account.has_room()), (0, true, true));
    }

    #[test]
    fn garbage_that_is_written_off_is_no_longer_counted() {
        let account = Account::new(Bound::Bytes(1_000));
        let (_alive, _stuck) = (Charge::new(&account, 600), Charge::new(&account, 900));
        account.write_off_all_but(600);
        assert_eq!(account.total(), 600);
    }
}
