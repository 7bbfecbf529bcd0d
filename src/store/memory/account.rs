//! What the entries of a store take, counted exactly.
//!
//! moka's own weight is no measure of memory: an entry that it has given up stays in a bag of crossbeam's until every
//! thread has moved on, and a thread that has gone idle keeps its bag. So an entry is counted when it is made, and no
//! longer counted when it is dropped, whoever drops it and whenever. Counted in stripes, so that writers do not wait for
//! one cache line.
//!
//! The bags take memory themselves, two kilobytes each, and moka fills one with each change. They are counted beside the
//! entries: where a thread that is looking at an entry does not get the processor, none is emptied, and small values take
//! less than the bags that they are given up in.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::settings::Bound;
use crate::lifecycle::thread_stripe;

const STRIPES: usize = 8;

/// What a change leaves to the collector, in bytes, beside the entry: a bag for what it replaces, one for the lock of the
/// key, and one or two for what it evicts.
const BAGS: u64 = 8192;

/// Of entries that are smaller than such a part of the bound, several threads may put one each into the last room.
const LIGHT: u64 = 128;

/// So many changes may be left to the collector whatever the bound.
const FEW: u64 = 16;

/// In the unit of the bound: bytes, or entries.
#[derive(Debug)]
pub(super) struct Account {
    bound: Bound,
    stripes: [Stripe; STRIPES],
    /// Garbage that came through a fork in the bags of threads that did not: it is never dropped here.
    written_off: AtomicI64,
    refused: AtomicU64,
    frozen: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    taken: AtomicI64,
    /// Changes of which the bags are not emptied yet.
    uncollected: AtomicI64,
}

impl Account {
    pub(super) fn new(bound: Bound) -> Arc<Account> {
        let stripes = [const { Stripe { taken: AtomicI64::new(0), uncollected: AtomicI64::new(0) } }; STRIPES];
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

    /// Whether what there is, garbage included, keeps to the bound.
    pub(super) fn is_within_bound(&self) -> bool {
        self.total() <= self.bound.limit()
    }

    /// Whether there may be more. Up to a sixteenth above the bound, since what is overwritten takes its time to go, and
    /// up to a quarter above it with the bags.
    pub(super) fn has_room(&self) -> bool {
        self.has_room_beside(0)
    }

    fn has_room_beside(&self, reserved: u64) -> bool {
        let (limit, total) = (self.bound.limit(), self.total().saturating_sub(reserved));
        let bags = match self.bound {
            Bound::Bytes(_) => self.uncollected().saturating_sub(FEW) * BAGS,
            Bound::Entries(_) => 0,
        };
        total <= limit.saturating_add(limit / 16) && total + bags <= limit.saturating_add(limit / 4)
    }

    /// Room for an entry of this weight, until the reservation is dropped; `None` if there is none.
    pub(super) fn reserve(self: &Arc<Self>, weight: u64) -> Option<Reservation> {
        if weight <= self.bound.limit() / LIGHT {
            return self.has_room().then_some(Reservation(None));
        }
        let charge = Charge::new(self, weight);
        self.has_room_beside(weight).then(|| Reservation(Some(charge)))
    }

    pub(super) fn total(&self) -> u64 {
        let counted: i64 = self.stripes.iter().map(|stripe| stripe.taken.load(Ordering::Relaxed)).sum();
        u64::try_from(counted - self.written_off.load(Ordering::Relaxed)).unwrap_or(0) + self.frozen()
    }

    /// What is frozen counts, and does not come and go.
    pub(super) fn frozen(&self) -> u64 {
        self.frozen.load(Ordering::Relaxed)
    }

    pub(super) fn set_frozen(&self, frozen: u64) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// What is left of the bound for the live layer.
    pub(super) fn live_limit(&self) -> u64 {
        self.bound.limit().saturating_sub(self.frozen()).max(1)
    }

    /// How many changes have left something to the collector that is not dropped yet.
    pub(super) fn uncollected(&self) -> u64 {
        let counted: i64 = self.stripes.iter().map(|stripe| stripe.uncollected.load(Ordering::Relaxed)).sum();
        u64::try_from(counted).unwrap_or(0)
    }

    /// Counts a change of this thread until the collector has emptied the bag that is open now.
    pub(super) fn count_bag(self: &Arc<Self>) {
        let account = Arc::clone(self);
        let stripe = thread_stripe() % STRIPES;
        self.stripes[stripe].uncollected.fetch_add(1, Ordering::Relaxed);
        crossbeam_epoch::pin().defer(move || account.stripes[stripe].uncollected.fetch_sub(1, Ordering::Relaxed));
    }

    /// Leaves out of account whatever there is beside `alive`, and what is frozen.
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
        self.stripes[thread_stripe() % STRIPES].taken.fetch_add(amount, Ordering::Relaxed);
    }
}

/// What one entry takes, counted for as long as it lives.
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

/// Room that other threads do not take, for as long as it lives.
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
    fn what_is_dropped_is_no_longer_counted_whoever_drops_it() {
        let account = Account::new(Bound::Bytes(1_000));
        let charges: Vec<Charge> = (0..10).map(|_| Charge::new(&account, 130)).collect();
        assert_eq!((account.total(), account.is_within_bound(), account.has_room()), (1_300, false, false));
        std::thread::spawn(move || drop(charges)).join().unwrap();
        assert_eq!((account.total(), account.is_within_bound(), account.has_room()), (0, true, true));
    }

    #[test]
    fn what_is_written_off_is_no_longer_counted() {
        let account = Account::new(Bound::Bytes(1_000));
        let (_alive, _stuck) = (Charge::new(&account, 600), Charge::new(&account, 900));
        account.write_off_all_but(600);
        assert_eq!(account.total(), 600);
    }
}
