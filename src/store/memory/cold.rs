//! The stand-in for moka in a process that cannot trust moka: a few least-recently-used lists behind locks.
//!
//! Plain on purpose: its locks are the standard library's, it has no thread, no queue and no collector of garbage, so it can
//! be made in any process, whatever was inherited.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;

use super::account::Account;
use super::backing::Change;
use super::entry::Entry;
use crate::lifecycle::gate;
use crate::sync::Lock;

const SHARDS: usize = 16;

/// Shards share one bound. An entry that does not fit makes room in its own shard first, then in the others'.
#[derive(Debug)]
pub(super) struct Cold {
    shards: Vec<Lock<Shard>>,
    hasher: RandomState,
    /// What the entries weigh together, in the unit of the account's bound.
    weight: AtomicU64,
}

type Shard = LruCache<String, Arc<Entry>>;

impl Cold {
    pub(super) fn new() -> Cold {
        let shards = (0..SHARDS).map(|_| Lock::new("memory", LruCache::unbounded())).collect();
        Cold { shards, hasher: RandomState::new(), weight: AtomicU64::new(0) }
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        let mut shard = self.shards[self.shard_of(key)].lock();
        self.live(&mut shard, key).cloned()
    }

    pub(super) fn change<R>(
        &self,
        account: &Arc<Account>,
        key: &str,
        decide: impl FnOnce(Option<&Arc<Entry>>) -> (Change, R),
    ) -> R {
        let own = self.shard_of(key);
        let mut shard = self.shards[own].lock();
        let current = self.live(&mut shard, key).cloned();
        let (change, answer) = decide(current.as_ref());
        if matches!(change, Change::Remove) {
            self.remove(&mut shard, key);
        } else if let Some(entry) = change.entry(account, key, current.as_ref()) {
            self.remove(&mut shard, key);
            self.weight.fetch_add(entry.weight().into(), Ordering::Relaxed);
            shard.put(key.to_owned(), entry);
            drop(shard);
            self.make_room(account, own);
        }
        answer
    }

    pub(super) fn entries(&self) -> Vec<(Arc<String>, Arc<Entry>)> {
        let of_shard = |shard: &Lock<Shard>| -> Vec<_> {
            let _pass = gate::enter();
            let shard = shard.lock();
            shard.iter().map(|(key, entry)| (Arc::new(key.clone()), Arc::clone(entry))).collect()
        };
        self.shards.iter().flat_map(of_shard).collect()
    }

    pub(super) fn clear(&self, prefix: &str) {
        for shard in &self.shards {
            let _pass = gate::enter();
            let mut shard = shard.lock();
            let doomed: Vec<String> =
                shard.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, _)| key.clone()).collect();
            for key in doomed {
                self.remove(&mut shard, &key);
            }
        }
    }

    fn shard_of(&self, key: &str) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }

    /// The entry under `key`, now the most recently used, unless it has expired.
    fn live<'a>(&self, shard: &'a mut Shard, key: &str) -> Option<&'a Arc<Entry>> {
        if shard.peek(key).is_some_and(|entry| !entry.is_live()) {
            self.remove(shard, key);
        }
        shard.get(key)
    }

    fn remove(&self, shard: &mut Shard, key: &str) {
        if let Some(entry) = shard.pop(key) {
            self.weight.fetch_sub(entry.weight().into(), Ordering::Relaxed);
        }
    }

    /// Evicts what was used least recently, shard after shard, but not what the shard `newest` has just got.
    fn make_room(&self, account: &Account, newest: usize) {
        let mut spared = 0;
        for index in (newest..).map(|index| index % SHARDS) {
            if self.weight.load(Ordering::Relaxed) <= account.live_limit() || spared == SHARDS {
                return;
            }
            let mut shard = self.shards[index].lock();
            let kept = usize::from(index == newest);
            if shard.len() <= kept {
                spared += 1;
                continue;
            }
            spared = 0;
            if let Some((_, entry)) = shard.pop_lru() {
                self.weight.fetch_sub(entry.weight().into(), Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::account::Account;
    use super::super::backing::Change;
    use super::super::settings::Bound;
    use super::Cold;

    fn put(cold: &Cold, account: &std::sync::Arc<Account>, key: &str, size: usize) {
        let value = Bytes::from(vec![b'x'; size]);
        cold.change(account, key, |_| (Change::Put { value, expires_at: None }, ()));
    }

    #[test]
    fn the_bound_holds_for_all_shards_together_and_the_newest_entry_stays() {
        let (cold, account) = (Cold::new(), Account::new(Bound::Bytes(10_000)));
        for number in 0..1_000 {
            let key = format!("small:{number}");
            put(&cold, &account, &key, 100);
            assert!(cold.get(&key).is_some());
            assert!(cold.weight.load(std::sync::atomic::Ordering::Relaxed) <= 10_000);
        }
        put(&cold, &account, "large", 9_000);
        assert_eq!(cold.get("large").map(|entry| entry.value.len()), Some(9_000));
    }

    #[test]
    fn a_bound_in_entries_counts_entries() {
        let (cold, account) = (Cold::new(), Account::new(Bound::Entries(10)));
        for number in 0..100 {
            put(&cold, &account, &number.to_string(), number);
        }
        let held = (0..100).filter(|number: &i32| cold.get(&number.to_string()).is_some()).count();
        assert_eq!(held, 10);
    }
}
