//! What the entries of a store take, counted exactly.
//!
//! moka's own weight is no measure of memory: an entry that it has given up stays in a bag of crossbeam's until every
//! thread has moved on, and a thread that has gone idle keeps its bag. So an entry is counted when it is made, and no
//! longer counted when it is dropped, whoever drops it and whenever. Counted in stripes, so that writers do not wait for
//! one cache line.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::settings::Bound;
use crate::lifecycle::thread_stripe;

const STRIPES: usize = 8;

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
struct Stripe(AtomicI64);

impl Account {
    pub(super) fn new(bound: Bound) -> Arc<Account> {
        let stripes = [const { Stripe(AtomicI64::new(0)) }; STRIPES];
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

    /// Whether there may be more. Up to a sixteenth above the bound, since what is overwritten takes its time to go; the
    /// rest of a quarter is left to the lists of the collector, which take 2 kB for a few entries.
    pub(super) fn has_room(&self) -> bool {
        let limit = self.bound.limit();
        self.total() <= limit.saturating_add(limit / 16)
    }

    pub(super) fn total(&self) -> u64 {
        let counted: i64 = self.stripes.iter().map(|stripe| stripe.0.load(Ordering::Relaxed)).sum();
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

    /// Leaves out of account whatever there is beside `alive`, and what is frozen.
    pub(super) fn write_off_all_but(&self, alive: u64) {
        let garbage = self.total().saturating_sub(alive + self.frozen());
        self.written_off.fetch_add(signed(garbage), Ordering::Relaxed);
    }

    #[cold]
    pub(super) fn count_refusal(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn add(&self, amount: i64) {
        self.stripes[thread_stripe() % STRIPES].0.fetch_add(amount, Ordering::Relaxed);
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
