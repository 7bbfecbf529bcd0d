//! A frozen entry behaves like any other entry, until it is written.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prefork_cache::stores::{MemoryStore, NullStore, TieredStore};
use prefork_cache::{Cache, CacheStore, Ttl, When};
use support::wait::until;

const ENTRIES: usize = 500;

/// A store with frozen entries.
async fn frozen() -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new());
    for number in 0..ENTRIES {
        set(&store, &format!("key {number}"), &format!("value {number}")).await;
    }
    assert!(store.freeze());
    assert!(store.usage().frozen > 0);
    store
}

async fn set(store: &MemoryStore, key: &str, value: &str) {
    assert!(store.set(key, value.to_owned().into(), Ttl::Never, When::Always).await.unwrap());
}

async fn get(store: &MemoryStore, key: &str) -> Option<String> {
    let found: Option<Bytes> = store.get(key).await.unwrap();
    found.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn a_frozen_entry_is_read_without_the_live_layer() {
    let store = frozen().await;
    for number in 0..ENTRIES {
        let key = format!("key {number}");
        let found = store.get(&key).await.unwrap().unwrap();
        assert_eq!(found, format!("value {number}"));
        assert_eq!(found.as_ptr(), store.get(&key).await.unwrap().unwrap().as_ptr(), "one address in one table");
    }
    assert_eq!(get(&store, "missing").await, None);
    // All tests share the collector: a thread that reads an entry delays it, and later reads advance it.
    until("nothing is in the live layer", || {
        (0..200).for_each(|_| drop(ready_now(store.get("missing"))));
        store.usage().held == store.usage().frozen
    });
}

/// Each operation, on its own entry.
#[tokio::test]
async fn every_operation_works_on_a_frozen_entry() {
    let store = frozen().await;
    let (never, always) = (Ttl::Never, When::Always);
    assert!(store.set("key 0", "new".into(), never, always).await.unwrap());
    assert_eq!(get(&store, "key 0").await.as_deref(), Some("new"));
    assert!(!store.set("key 1", "new".into(), never, When::IfAbsent).await.unwrap());
    assert_eq!(get(&store, "key 1").await.as_deref(), Some("value 1"));
    assert!(store.set("key 2", "new".into(), never, When::IfPresent).await.unwrap());
    assert_eq!(get(&store, "key 2").await.as_deref(), Some("new"));
    assert!(store.delete("key 3").await.unwrap());
    assert!(!store.delete("key 3").await.unwrap());
    assert_eq!(get(&store, "key 3").await, None);
    assert!(!store.compare_and_set("key 4", Some(b"other"), Some("new".into()), never).await.unwrap());
    assert!(store.compare_and_set("key 4", Some(b"value 4"), Some("new".into()), never).await.unwrap());
    assert_eq!(get(&store, "key 4").await.as_deref(), Some("new"));
    assert!(store.increment("key 5", 1, never).await.is_err(), "not a number");
    assert_eq!(get(&store, "key 5").await.as_deref(), Some("value 5"));
    assert!(store.touch("key 6", Ttl::After(Duration::from_millis(20))).await.unwrap());
    until("the touched entry has expired", || ready_now(store.get("key 6")).unwrap().is_none());
    store.clear("key 7").await.unwrap();
    assert_eq!((get(&store, "key 7").await, get(&store, "key 71").await), (None, None));
    assert_eq!(get(&store, "key 8").await.as_deref(), Some("value 8"));
    assert_eq!(store.kept("key 9").unwrap().bytes(), "value 9");
    assert_eq!(get(&store, "key 9").await.as_deref(), Some("value 9"));
    store.clear("").await.unwrap();
    for number in 0..ENTRIES {
        assert_eq!(get(&store, &format!("key {number}")).await, None);
    }
}

fn ready_now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(ready) => ready,
        std::task::Poll::Pending => panic!("memory does not wait"),
    }
}

#[tokio::test]
async fn a_frozen_counter_can_be_incremented() {
    let store = MemoryStore::new();
    store.increment("visits", 41, Ttl::Never).await.unwrap();
    assert!(store.freeze());
    assert_eq!(store.increment("visits", 1, Ttl::Never).await.unwrap(), 42);
    assert_eq!(get(&store, "visits").await.as_deref(), Some("42"));
}

#[tokio::test]
async fn a_frozen_entry_expires_in_its_time() {
    let store = MemoryStore::new();
    store.set("key", "value".into(), Ttl::After(Duration::from_millis(50)), When::Always).await.unwrap();
    set(&store, "other", "value").await;
    assert!(store.freeze());
    until("the frozen entry has expired", || ready_now(store.get("key")).unwrap().is_none());
    assert!(!store.delete("key").await.unwrap());
    assert!(store.set("key", "new".into(), Ttl::Never, When::IfAbsent).await.unwrap());
    assert_eq!(get(&store, "key").await.as_deref(), Some("new"));
}

/// An old value does not reappear when the new one is evicted.
#[tokio::test]
async fn an_overwritten_value_does_not_reappear() {
    let store = MemoryStore::builder().max_bytes(100_000).build();
    for number in 0..20 {
        set(&store, &format!("key {number}"), "old").await;
    }
    assert!(store.freeze());
    for number in 0..10 {
        set(&store, &format!("key {number}"), "new").await;
    }
    for number in 0..2_000 {
        set(&store, &format!("filler {number}"), &"x".repeat(200)).await;
    }
    for number in 0..20 {
        let found = get(&store, &format!("key {number}")).await;
        if number < 10 {
            assert!(found.is_none_or(|found| found == "new"), "key {number}");
        } else {
            assert_eq!(found.as_deref(), Some("old"), "frozen entries are not evicted");
        }
    }
    let usage = store.usage();
    assert!(usage.held <= 125_000 && usage.frozen > 0, "{usage:?}");
}

#[tokio::test]
async fn freezing_again_needs_enough_changes() {
    let store = frozen().await;
    assert!(!store.freeze(), "nothing was written since");
    set(&store, "key 0", "new").await;
    assert!(!store.freeze(), "too little was written since");
    let mut tables = 1;
    for round in 0..10 {
        for number in 0..ENTRIES {
            set(&store, &format!("key {number}"), &format!("{number} in round {round}")).await;
        }
        tables += usize::from(store.freeze());
        for number in 0..ENTRIES {
            let found = get(&store, &format!("key {number}")).await;
            assert_eq!(found, Some(format!("{number} in round {round}")));
        }
    }
    assert_eq!(tables, 4);
}

/// Writers, readers and a thread that freezes: each key has one writer, which reads back its own writes.
#[test]
fn freezing_beside_writers_loses_nothing() {
    let store = MemoryStore::new();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..4_000 {
                        let (key, value) = (format!("{thread} {}", round % 50), format!("{round}"));
                        let value_bytes = Bytes::from(value.clone());
                        ready_now(store.set(&key, value_bytes, Ttl::Never, When::Always)).unwrap();
                        let found = ready_now(store.get(&key)).unwrap();
                        assert_eq!(found.as_deref(), Some(value.as_bytes()), "{key}");
                        if round % 7 == 0 {
                            assert!(ready_now(store.delete(&key)).unwrap());
                            assert_eq!(ready_now(store.get(&key)).unwrap(), None, "{key}");
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                store.freeze();
                std::thread::yield_now();
            }
        });
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(ended.iter().all(Result::is_ok));
    });
}

#[test]
fn a_cache_freezes_its_store_whatever_it_is_wrapped_in() {
    let hour = Duration::from_secs(3_600);
    let freezes = |store: Box<dyn CacheStore>| {
        let cache = Cache::builder(store).build();
        cache.blocking().set("key", "value", hour).unwrap();
        let is_frozen = cache.namespace("other").freeze();
        (is_frozen, cache.blocking().get::<String>("key").unwrap())
    };
    let (found, none) = (Some("value".to_owned()), None);
    let memory = Arc::new(MemoryStore::new());
    assert_eq!(freezes(Box::new(Arc::clone(&memory))), (true, found.clone()));
    assert!(memory.usage().frozen > 0);
    let (near, far) = (Arc::new(MemoryStore::new()), Arc::new(MemoryStore::new()));
    let tiered = TieredStore::new(Arc::clone(&near), Arc::clone(&far) as Arc<dyn CacheStore>).near_ttl(hour);
    assert_eq!(freezes(Box::new(tiered)), (true, found));
    assert!(near.usage().frozen > 0 && far.usage().frozen > 0, "each of the two");
    assert_eq!(freezes(Box::new(NullStore::new())), (false, none));
}
