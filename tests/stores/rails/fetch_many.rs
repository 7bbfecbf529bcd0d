//! Batches: the missing keys are loaded together.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use prefork_cache::stores::MemoryStore;
use prefork_cache::{Cache, CacheStore, Expiry, Op, Outcome, Result, Ttl, When};

use super::failure_safety::unavailable;
use super::{Everywhere, LONG, SHORT, everywhere, text, until_gone};
use crate::conformance::current_thread;

type Loaded = Vec<Result<String, Infallible>>;

/// Loads the key repeated twice for each key.
fn doubled(keys: &[&str]) -> Loaded {
    keys.iter().map(|key| Ok(key.repeat(2))).collect()
}

/// A loader that must not be called.
fn not_called(keys: &[&str]) -> Loaded {
    panic!("there was no need to load {keys:?}")
}

fn values(fetched: Loaded) -> Vec<String> {
    fetched.into_iter().map(|Ok(value)| value).collect()
}

#[test]
fn the_missing_are_loaded_together_and_all_come_in_the_order_of_their_keys() {
    everywhere(|cache| {
        let blocking = cache.blocking();
        blocking.set("there", "bar", LONG).unwrap();
        let load = |missing: &[&str]| {
            assert_eq!(missing, ["b", "a"], "each key once, in the order of the call");
            doubled(missing)
        };
        let fetched = values(blocking.fetch_many(&["b", "there", "a", "b"], LONG, load));
        assert_eq!(fetched, ["bb", "bar", "aa", "bb"]);
        assert_eq!(text(cache, "a").as_deref(), Some("aa"));
        assert_eq!(values(blocking.fetch_many(&["a", "b", "there"], LONG, not_called)), ["aa", "bb", "bar"]);

        current_thread().block_on(async {
            let fetched = cache.fetch_many(&["c", "a"], LONG, async |missing: Vec<&str>| doubled(&missing)).await;
            assert_eq!(values(fetched), ["cc", "aa"]);
        });
    });
}

#[test]
fn what_is_loaded_may_be_kept_for_ever() {
    everywhere(|cache| {
        assert_eq!(values(cache.blocking().fetch_many(&["a"], Expiry::NEVER, doubled)), ["aa"]);
        assert_eq!(text(cache, "a").as_deref(), Some("aa"));
    });
}

#[test]
fn none_at_all_are_fetched_without_loading() {
    everywhere(|cache| {
        assert!(cache.blocking().fetch_many(&[""; 0], LONG, not_called).is_empty());
        assert!(
            current_thread()
                .block_on(cache.fetch_many(&[""; 0], LONG, async |keys: Vec<&str>| not_called(&keys)))
                .is_empty()
        );
    });
}

#[test]
fn a_forced_fetch_of_many_loads_and_stores_them_all() {
    everywhere(|cache| {
        cache.blocking().set("a", "bar", LONG).unwrap();
        assert_eq!(values(cache.force(true).blocking().fetch_many(&["a", "b"], LONG, doubled)), ["aa", "bb"]);
        assert_eq!(text(cache, "a").as_deref(), Some("aa"));
        assert_eq!(text(cache, "b").as_deref(), Some("bb"));
    });
}

#[test]
fn what_could_not_be_loaded_is_not_kept_and_the_rest_is() {
    everywhere(|cache| {
        let load = |missing: &[&str]| {
            missing.iter().map(|key| if *key == "a" { Ok(key.repeat(2)) } else { Err("there is none") }).collect()
        };
        let fetched = cache.blocking().fetch_many(&["a", "b"], LONG, load);
        assert_eq!(fetched, [Ok("aa".to_owned()), Err("there is none")]);
        assert!(cache.blocking().exists("a").unwrap());
        assert!(!cache.blocking().exists("b").unwrap());
    });
}

#[test]
fn one_that_has_expired_is_loaded_and_the_others_are_not() {
    let everywhere = Everywhere::new();
    everywhere.each(|cache| {
        cache.blocking().set("gone", "foo", SHORT).unwrap();
        cache.blocking().set("there", "bar", LONG).unwrap();
    });
    everywhere.each(|cache| {
        until_gone(cache, "gone");
        let load = |missing: &[&str]| {
            assert_eq!(missing, ["gone"]);
            assert_eq!(text(cache, "gone"), None);
            assert_eq!(text(cache, "there").as_deref(), Some("bar"));
            doubled(missing)
        };
        assert_eq!(values(cache.blocking().fetch_many(&["gone", "there"], LONG, load)), ["gonegone", "bar"]);
    });
}

#[test]
fn under_a_new_version_all_are_loaded() {
    everywhere(|cache| {
        let [one, two] = ["1", "2"].map(|version| cache.version(version));
        let keys = ["model/1", "model/2"];
        assert_eq!(values(one.blocking().fetch_many(&keys, LONG, doubled)), ["model/1model/1", "model/2model/2"]);
        assert_eq!(values(one.blocking().fetch_many(&keys, LONG, not_called)), ["model/1model/1", "model/2model/2"]);
        let load = |missing: &[&str]| missing.iter().map(|key| Ok(format!("{key}, 2nd"))).collect();
        assert_eq!(values(two.blocking().fetch_many(&keys, LONG, load)), ["model/1, 2nd", "model/2, 2nd"]);
    });
}

#[test]
fn during_an_outage_all_are_loaded() {
    for cache in unavailable() {
        println!("on {cache:?}");
        assert_eq!(values(cache.blocking().fetch_many(&["a", "b"], LONG, doubled)), ["aa", "bb"]);
    }
}

#[test]
fn many_cost_three_round_trips_and_then_one() {
    let store = Arc::new(Counting { memory: MemoryStore::new(), reads: 0.into(), writes: 0.into() });
    let cache = Cache::builder(Arc::clone(&store)).build();
    assert_eq!(values(cache.blocking().fetch_many(&["a", "b", "c"], LONG, doubled)), ["aa", "bb", "cc"]);
    assert_eq!(values(cache.blocking().fetch_many(&["a", "b", "c"], LONG, not_called)), ["aa", "bb", "cc"]);
    assert_eq!(store.reads.load(Ordering::SeqCst), 2, "one for each fetch");
    assert_eq!(store.writes.load(Ordering::SeqCst), 2, "one that claims, and one that stores");
}

/// A memory store that counts its reads and its writes.
#[derive(Debug)]
struct Counting {
    memory: MemoryStore,
    reads: AtomicUsize,
    writes: AtomicUsize,
}

#[async_trait]
impl CacheStore for Counting {
    fn name(&self) -> &str {
        "counting"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.memory.get(key).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.memory.set(key, value, ttl, when).await
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        self.memory.delete(key).await
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        self.memory.compare_and_set(key, expected, new, ttl).await
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        self.memory.clear(prefix).await
    }

    fn reset(&self) {}

    async fn reconnect(&self) -> Result<()> {
        Ok(())
    }

    async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.memory.get_many(keys).await
    }

    async fn batch(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.memory.batch(operations).await
    }
}
