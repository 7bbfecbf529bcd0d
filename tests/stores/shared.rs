//! Shared reads: a value is decoded once, for as long as its entry is stored.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, NullStore, TieredStore};
use prefork_cache::{Cache, CacheStore, Expiry, Ttl, When};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const TTL: Duration = Duration::from_secs(3_600);

fn cache() -> Cache {
    Cache::builder(MemoryStore::new()).build()
}

fn shared<T: serde::de::DeserializeOwned + Send + Sync + 'static>(cache: &Cache, key: &str) -> Option<Arc<T>> {
    cache.blocking().get_shared(key).expect("memory does not fail")
}

#[test]
fn a_value_is_decoded_once() {
    let cache = cache();
    cache.blocking().set("key", "first", TTL).unwrap();
    let first = shared::<String>(&cache, "key").unwrap();
    assert!(Arc::ptr_eq(&first, &shared(&cache, "key").unwrap()));
    cache.blocking().set("key", "second", TTL).unwrap();
    assert_eq!(*shared::<String>(&cache, "key").unwrap(), "second");
    assert_eq!(*first, "first", "a caller's value does not change");
    cache.blocking().delete("key").unwrap();
    assert_eq!(shared::<String>(&cache, "key"), None);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.undecodable), (3, 1, 0));
}

/// A value with interior mutability.
#[derive(Clone, Debug)]
struct SharedNumber(Arc<Mutex<u32>>);

impl Serialize for SharedNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.lock().unwrap().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SharedNumber, D::Error> {
        u32::deserialize(deserializer).map(|number| SharedNumber(Arc::new(Mutex::new(number))))
    }
}

#[test]
fn a_shared_value_is_separate_from_those_of_set_and_get() {
    let cache = cache();
    let set = SharedNumber(Arc::new(Mutex::new(1)));
    cache.blocking().set("key", &set, TTL).unwrap();
    *set.0.lock().unwrap() = 2;
    let one = shared::<SharedNumber>(&cache, "key").unwrap();
    assert_eq!(*one.0.lock().unwrap(), 1);
    *one.0.lock().unwrap() = 3;
    let other = shared::<SharedNumber>(&cache, "key").unwrap();
    assert_eq!(*other.0.lock().unwrap(), 3, "callers share it");
    let own: SharedNumber = cache.blocking().get("key").unwrap().unwrap();
    assert_eq!(*own.0.lock().unwrap(), 1);
}

/// A value that one handle has decoded is a hit for another handle only if that one reads such values.
#[test]
fn a_shared_hit_depends_on_the_handle() {
    let store = Arc::new(MemoryStore::new());
    let writer = Cache::builder(Arc::clone(&store)).compress_above(100).build();
    let small = Cache::builder(Arc::clone(&store)).max_inflated(1_000).build();
    let text = "a widget, ".repeat(1_000);
    writer.blocking().set("key", &text, TTL).unwrap();
    assert_eq!(shared::<String>(&writer, "key").as_deref(), Some(&text));
    assert_eq!(shared::<String>(&writer.version("2"), "key"), None);
    assert_eq!(shared::<String>(&small, "key"), None, "larger than this handle's max_inflated");
    assert_eq!(shared::<Vec<u8>>(&writer, "key"), None);
    assert_eq!(small.stats().undecodable, 1);
    let versioned = writer.version("2");
    versioned.blocking().set("key", "second", TTL).unwrap();
    assert_eq!(*shared::<String>(&versioned, "key").unwrap(), "second");
    assert_eq!(shared::<String>(&writer, "key"), None);
}

#[test]
fn the_times_of_an_entry_are_checked_at_each_hit() {
    let cache = cache();
    let expiry = Expiry::after(TTL).stale_for(TTL);
    cache.blocking().set("key", "value", expiry).unwrap();
    let fresh = shared::<String>(&cache, "key").unwrap();
    assert_eq!(cache.stats().stale, 0);
    cache.blocking().expire("key").unwrap();
    for _ in 0..2 {
        assert_eq!(shared::<String>(&cache, "key"), Some(Arc::clone(&fresh)), "a stale value is returned");
    }
    assert_eq!(cache.stats().stale, 2);
    let loaded = cache.blocking().fetch_shared("key", expiry, || Ok::<_, std::io::Error>("loaded".to_owned()));
    assert_eq!(*loaded.unwrap(), "loaded", "a fetch loads it again");
    cache.blocking().set("gone", "value", Duration::from_millis(1)).unwrap();
    support::wait::until("the entry has expired", || shared::<String>(&cache, "gone").is_none());
}

#[test]
fn an_entry_can_be_read_as_two_types() {
    let cache = cache();
    cache.blocking().set("key", &7_u32, TTL).unwrap();
    for _ in 0..3 {
        assert_eq!(shared::<u32>(&cache, "key"), Some(Arc::new(7)));
        assert_eq!(shared::<u64>(&cache, "key"), Some(Arc::new(7)));
    }
}

#[test]
fn a_decoded_value_is_weighed_from_its_first_shared_read() {
    let store = Arc::new(MemoryStore::builder().max_bytes(3_000).weigh_shared(|encoded| 2 * encoded.len()).build());
    let cache = Cache::builder(Arc::clone(&store)).build();
    cache.blocking().set("key", &"x".repeat(500), TTL).unwrap();
    let encoded = cache.blocking().get_raw("key").unwrap().unwrap().len() as u64;
    let encoded_only = store.usage().held;
    let is_held = |bytes: u64| {
        shared::<String>(&cache, "key").unwrap();
        // Makes the collector remove replaced entries.
        cache.blocking().delete("missing").unwrap();
        store.usage().held == bytes
    };
    support::wait::until("the decoded value is weighed", || is_held(encoded_only + 2 * encoded));
    cache.blocking().delete("key").unwrap();
    cache.blocking().set("large", &"x".repeat(1_500), TTL).unwrap();
    let first = shared::<String>(&cache, "large").unwrap();
    assert_eq!(first.len(), 1_500);
    assert!(!Arc::ptr_eq(&first, &shared(&cache, "large").unwrap()), "the decoded value does not fit");
}

#[test]
fn without_a_store_in_memory_each_read_decodes() {
    let far = Arc::new(MemoryStore::new());
    let tiered = TieredStore::new(MemoryStore::new(), Arc::clone(&far));
    let cache = Cache::builder(tiered).build();
    cache.blocking().set("key", "value", TTL).unwrap();
    let first = shared::<String>(&cache, "key").unwrap();
    assert!(Arc::ptr_eq(&first, &shared(&cache, "key").unwrap()), "the near store keeps it");
    let boxed: Box<dyn CacheStore> = Box::new(Arc::clone(&far));
    assert!(boxed.kept("key").is_some());
    assert!(boxed.kept("missing").is_none() && boxed.kept("").is_none());
    let far_alone = Cache::builder(TieredStore::new(NullStore::new(), far)).build();
    let first = shared::<String>(&far_alone, "key").unwrap();
    assert!(!Arc::ptr_eq(&first, &shared(&far_alone, "key").unwrap()));
    assert_eq!(*first, "value");
}

#[test]
fn a_fetch_shares_the_decoded_value() {
    let cache = cache();
    let fetch = |number: u32| {
        let load = || Ok::<_, std::io::Error>(SharedNumber(Arc::new(Mutex::new(number))));
        cache.blocking().fetch_shared("key", TTL, load).unwrap()
    };
    let loaded = fetch(1);
    *loaded.0.lock().unwrap() = 5;
    let hit = fetch(2);
    assert_eq!(*hit.0.lock().unwrap(), 1, "not the value that the loader returned");
    assert!(Arc::ptr_eq(&hit, &fetch(3)));
    let forced = cache.force(true);
    let loaded = forced.blocking().fetch_shared("key", TTL, || Ok::<_, std::io::Error>(7_u32)).unwrap();
    assert_eq!((*loaded, cache.stats().loads), (7, 2));
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);

#[derive(Serialize, Deserialize)]
struct UsesTheCache(u32);

impl Drop for UsesTheCache {
    fn drop(&mut self) {
        let cache = Cache::named("used by a drop").expect("the cache is registered");
        cache.blocking().set(&format!("dropped {}", self.0), &self.0, TTL).expect("memory does not fail");
        cache.blocking().delete("key 1").expect("memory does not fail");
        DROPPED.fetch_add(1, Ordering::SeqCst);
    }
}

/// A value's drop may run any code, so the store drops it while it holds no lock.
#[test]
fn a_value_may_use_the_cache_when_it_is_dropped() {
    let cache = Cache::builder(MemoryStore::builder().max_bytes(20_000).build()).name("used by a drop").register();
    for round in 0..300 {
        let key = format!("key {}", round % 7);
        cache.blocking().set(&key, &UsesTheCache(round), TTL).unwrap();
        drop(shared::<UsesTheCache>(&cache, &key));
    }
    cache.blocking().clear().unwrap();
    // The values passed to `set`, and the decoded ones.
    assert!(DROPPED.load(Ordering::SeqCst) > 400, "{DROPPED:?}");
}

#[tokio::test]
async fn a_shared_read_can_be_awaited() {
    let store = MemoryStore::new();
    store.set("raw", "hello".into(), Ttl::Never, When::Always).await.unwrap();
    let cache = Cache::builder(store).build();
    assert_eq!(cache.get_shared::<String>("raw").await.unwrap(), None, "raw bytes are not a typed value");
    assert_eq!(cache.stats().undecodable, 1);
    assert!(cache.get_shared::<String>("").await.is_err());
    let load = async || Ok::<_, std::io::Error>("loaded".to_owned());
    assert_eq!(*cache.fetch_shared("key", TTL, load).await.unwrap(), "loaded");
    assert_eq!(*cache.get_shared::<String>("key").await.unwrap().unwrap(), "loaded");
}
