//! The replacement for moka in a process where moka cannot be used safely.
//!
//! It has no thread, no queue and no garbage collector, and its locks are the standard library's, so it can be created
//! in any process, whatever state was inherited. `quick_cache` has about the same hit rate as moka, while an LRU list has
//! about a tenth fewer hits.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::quality::RandomState;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::account::Account;
use super::change::Change;
use super::entry::Entry;
use super::settings::Bound;
use crate::sync::Lock;

/// The number of locks for changes of entries.
const STRIPES: usize = 16;

#[derive(Debug)]
pub(super) struct Fallback {
    /// A single shard: with several, each would refuse an entry that is larger than its share of the bound.
    entries: Cache<String, Arc<Entry>, Weight, RandomState>,
    changes: [Lock<()>; STRIPES],
    hasher: RandomState,
}

/// Weighs entries in the unit of the bound.
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
        let _guard = self.changes[self.hasher.hash_one(key) as usize % STRIPES].lock();
        let current = self.get(key);
        let (change, result) = decide(current.as_ref());
        if matches!(change, Change::Remove) {
            self.entries.remove(key);
        } else if let Some(entry) = change.entry(account, key, current.as_ref()) {
            self.entries.insert(key.to_owned(), entry);
        }
        result
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
    use super::super::change::Change;
    use super::super::settings::Bound;
    use super::Fallback;

    fn fallback(bound: Bound) -> (Fallback, Arc<Account>) {
        (Fallback::new(bound), Account::new(bound))
    }

    fn put(fallback: &Fallback, account: &Arc<Account>, key: &str, size: usize) {
        let value = Bytes::from(vec![b'x'; size]);
        fallback.change(account, key, |_| (Change::Put { value, expires_at: None }, ()));
    }

    #[test]
    fn the_bound_holds_and_a_value_of_nearly_its_size_is_kept() {
        let (fallback, account) = fallback(Bound::Bytes(10_000));
        for number in 0..1_000 {
            let key = format!("small:{number}");
            put(&fallback, &account, &key, 100);
            assert!(fallback.get(&key).is_some());
            assert!(account.is_within_bound());
        }
        put(&fallback, &account, "large", 9_000);
        assert_eq!(fallback.get("large").map(|entry| entry.value.len()), Some(9_000));
        assert!(account.is_within_bound());
    }

    #[test]
    fn a_bound_in_entries_counts_entries() {
        let (fallback, account) = fallback(Bound::Entries(10));
        for number in 0..100 {
            put(&fallback, &account, &number.to_string(), number);
        }
        let held = (0..100).filter(|number: &i32| fallback.get(&number.to_string()).is_some()).count();
        assert_eq!(held, 10);
    }

    #[test]
    fn a_lower_limit_takes_effect_immediately() {
        let (fallback, account) = fallback(Bound::Bytes(10_000));
        (0..20).for_each(|number| put(&fallback, &account, &number.to_string(), 100));
        fallback.set_limit(2_000);
        assert!(account.total() <= 2_000);
    }
}
