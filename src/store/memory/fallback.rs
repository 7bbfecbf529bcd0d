//! The stand-in for moka in a process that cannot trust moka.
//!
//! It has no thread, no queue and no collector of garbage, and its locks are the standard library's, so it can be made in
//! any process, whatever was inherited. `quick_cache` keeps what is used often as well as moka does, where a list of what
//! was used last keeps a tenth less of a hundred reads.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::quality::RandomState;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::account::Account;
use super::engine::Change;
use super::entry::Entry;
use super::settings::Bound;
use crate::sync::Lock;

/// So many changes of different entries can be under way at once.
const STRIPES: usize = 16;

#[derive(Debug)]
pub(super) struct Fallback {
    /// In one part: of several, each would refuse what is larger than its share of the bound.
    entries: Cache<String, Arc<Entry>, Weight, RandomState>,
    changes: [Lock<()>; STRIPES],
    hasher: RandomState,
}

/// In the unit of the account's bound.
#[derive(Clone, Debug)]
struct Weight;

impl Weighter<String, Arc<Entry>> for Weight {
    fn weight(&self, _: &String, entry: &Arc<Entry>) -> u64 {
        entry.weight().into()
    }
}

impl Fallback {
    pub(super) fn new(bound: Bound) -> Fallback {
        let options = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity(usize::try_from(bound.limit() / bound.weigh("", 0)).unwrap_or(usize::MAX))
            .weight_capacity(bound.limit())
            .build()
            .expect("both capacities are given");
        Fallback {
            entries: Cache::with_options(options, Weight, RandomState::default(), DefaultLifecycle::default()),
            changes: [const { Lock::new("memory", ()) }; STRIPES],
            hasher: RandomState::default(),
        }
    }

    pub(super) fn set_limit(&self, limit: u64) {
        self.entries.set_capacity(limit);
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        let found = self.entries.get(key)?;
        if found.is_live() {
            return Some(found);
        }
        self.entries.remove_if(key, |current| Arc::ptr_eq(current, &found));
        None
    }

    pub(super) fn change<R>(
        &self,
        account: &Arc<Account>,
        key: &str,
        decide: impl FnOnce(Option<&Arc<Entry>>) -> (Change, R),
    ) -> R {
        let _turn = self.changes[self.hasher.hash_one(key) as usize % STRIPES].lock();
        let current = self.get(key);
        let (change, answer) = decide(current.as_ref());
        if matches!(change, Change::Remove) {
            self.entries.remove(key);
        } else if let Some(entry) = change.entry(account, key, current.as_ref()) {
            self.entries.insert(key.to_owned(), entry);
        }
        answer
    }

    pub(super) fn entries(&self) -> Vec<(Arc<String>, Arc<Entry>)> {
        self.entries.iter().map(|(key, entry)| (Arc::new(key), entry)).collect()
    }

    pub(super) fn clear(&self, prefix: &str) {
        self.entries.retain(|key, _| !key.starts_with(prefix));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::account::Account;
    use super::super::engine::Change;
    use super::super::settings::Bound;
    use super::Fallback;

    fn cold(bound: Bound) -> (Fallback, Arc<Account>) {
        (Fallback::new(bound), Account::new(bound))
    }

    fn put(cold: &Fallback, account: &Arc<Account>, key: &str, size: usize) {
        let value = Bytes::from(vec![b'x'; size]);
        cold.change(account, key, |_| (Change::Put { value, expires_at: None }, ()));
    }

    #[test]
    fn the_bound_holds_and_a_value_that_nearly_fills_it_is_kept() {
        let (cold, account) = cold(Bound::Bytes(10_000));
        for number in 0..1_000 {
            let key = format!("small:{number}");
            put(&cold, &account, &key, 100);
            assert!(cold.get(&key).is_some());
            assert!(account.is_within_bound());
        }
        put(&cold, &account, "large", 9_000);
        assert_eq!(cold.get("large").map(|entry| entry.value.len()), Some(9_000));
        assert!(account.is_within_bound());
    }

    #[test]
    fn a_bound_in_entries_counts_entries() {
        let (cold, account) = cold(Bound::Entries(10));
        for number in 0..100 {
            put(&cold, &account, &number.to_string(), number);
        }
        let held = (0..100).filter(|number: &i32| cold.get(&number.to_string()).is_some()).count();
        assert_eq!(held, 10);
    }

    #[test]
    fn a_lower_limit_is_kept_to_at_once() {
        let (cold, account) = cold(Bound::Bytes(10_000));
        (0..20).for_each(|number| put(&cold, &account, &number.to_string(), 100));
        cold.set_limit(2_000);
        assert!(account.total() <= 2_000);
    }
}
