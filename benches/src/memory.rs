//! A hit in memory, compared with plain moka, with per-entry expiry on both sides.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cached::Cached;
use moka::Expiry;
use prefork_cache::Cache;
use prefork_cache::stores::MemoryStore;

use crate::measure::{candidate, compare};

const TTL: Duration = Duration::from_secs(3600);
const KEYS: usize = 1_000;

struct PerEntry;

impl Expiry<String, Arc<Widget>> for PerEntry {
    fn expire_after_create(&self, _: &String, _: &Arc<Widget>, _: Instant) -> Option<Duration> {
        Some(TTL)
    }
}

impl Expiry<String, (Bytes, Duration)> for PerEntry {
    fn expire_after_create(&self, _: &String, entry: &(Bytes, Duration), _: Instant) -> Option<Duration> {
        Some(entry.1)
    }
}

pub(crate) fn run() {
    let keys: Vec<String> = (0..KEYS).map(|number| format!("widget:{number}")).collect();
    let value = Bytes::from(vec![b'x'; 100]);

    let moka_cache = moka::sync::Cache::builder().max_capacity(10_000).expire_after(PerEntry).build();
    let cache = Cache::builder(MemoryStore::new()).build();
    let tenant = cache.namespace("tenant");
    for key in &keys {
        moka_cache.insert(key.clone(), (value.clone(), TTL));
        cache.blocking().set_raw(key, value.clone(), TTL).expect("memory stores");
        tenant.blocking().set_raw(key, value.clone(), TTL).expect("memory stores");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut turn = keys.iter().cycle();
    let mut turn_moka = keys.iter().cycle();
    let mut turn_async = keys.iter().cycle();
    let mut turn_named = keys.iter().cycle();
    compare(
        "memory hit",
        200_000,
        vec![
            candidate("prefork-cache, blocking", || {
                let key = turn.next().expect("an endless cycle");
                black_box(cache.blocking().get_raw(key).expect("a hit"));
            }),
            candidate("moka", || {
                black_box(moka_cache.get(turn_moka.next().expect("an endless cycle")).map(|entry| entry.0));
            }),
        ],
    );
    compare(
        "memory hit, in a namespace",
        200_000,
        vec![
            candidate("prefork-cache, blocking", || {
                let key = turn_named.next().expect("an endless cycle");
                black_box(tenant.blocking().get_raw(key).expect("a hit"));
            }),
            candidate("moka", || {
                black_box(moka_cache.get(turn_moka.next().expect("an endless cycle")).map(|entry| entry.0));
            }),
        ],
    );
    typed();
    shared(&keys);
    compare(
        "memory hit, awaited",
        20,
        vec![
            candidate("prefork-cache, 10,000 awaits", || {
                runtime.block_on(async {
                    for _ in 0..10_000 {
                        let key = turn_async.next().expect("an endless cycle");
                        black_box(cache.get_raw(key).await.expect("a hit"));
                    }
                });
            }),
            candidate("moka, 10,000 gets", || {
                for _ in 0..10_000 {
                    black_box(moka_cache.get(turn_moka.next().expect("an endless cycle")).map(|entry| entry.0));
                }
            }),
        ],
    );
}

type Widget = (u32, String, Vec<String>, Option<f64>);

fn widget() -> Widget {
    (7, "a widget".to_owned(), ["round", "green", "made of brass"].map(str::to_owned).to_vec(), Some(9.99))
}

/// Decodes the value at each hit; moka clones its value.
fn typed() {
    let moka_cache = moka::sync::Cache::builder().max_capacity(10_000).build();
    moka_cache.insert("widget:7".to_owned(), widget());
    let cache = Cache::builder(MemoryStore::new()).build();
    cache.blocking().set("widget:7", &widget(), TTL).expect("memory stores");
    compare(
        "memory hit, typed",
        100_000,
        vec![
            candidate("prefork-cache, blocking, decoded", || {
                black_box(cache.blocking().get::<Widget>("widget:7").expect("a hit"));
            }),
            candidate("moka, cloned", || {
                black_box(moka_cache.get("widget:7"));
            }),
        ],
    );
}

/// Decodes the value once, compared with caches of `Arc`s; then with a copy of the value on both sides.
fn shared(keys: &[String]) {
    let cache = Cache::builder(MemoryStore::new()).build();
    let moka = moka::sync::Cache::builder().max_capacity(10_000).build();
    let expiring = moka::sync::Cache::builder().max_capacity(10_000).expire_after(PerEntry).build();
    let quick = quick_cache::sync::Cache::new(10_000);
    let cached = Mutex::new(cached::SizedCache::with_size(10_000));
    let foyer: foyer_memory::Cache<String, Arc<Widget>> = foyer_memory::CacheBuilder::new(10_000).build();
    for key in keys {
        cache.blocking().set(key, &widget(), TTL).expect("memory stores");
        moka.insert(key.clone(), Arc::new(widget()));
        expiring.insert(key.clone(), Arc::new(widget()));
        quick.insert(key.clone(), Arc::new(widget()));
        cached.lock().expect("no panic").cache_set(key.clone(), Arc::new(widget()));
        foyer.insert(key.clone(), Arc::new(widget()));
    }
    let turns: [_; 6] = std::array::from_fn(|_| Cell::new(0));
    let next = |candidate: usize| &*keys[turns[candidate].replace(turns[candidate].get() + 1) % KEYS];
    compare(
        "memory hit, shared",
        200_000,
        vec![
            candidate("prefork-cache, blocking", || {
                black_box(cache.blocking().get_shared::<Widget>(next(0)).expect("a hit"));
            }),
            candidate("moka", || {
                black_box(moka.get(next(1)));
            }),
            candidate("moka, with an expiry", || {
                black_box(expiring.get(next(5)));
            }),
            candidate("quick_cache", || {
                black_box(quick.get(next(2)));
            }),
            candidate("cached, in a Mutex", || {
                black_box(cached.lock().expect("no panic").cache_get(next(3)).cloned());
            }),
            candidate("foyer, in memory", || {
                black_box(foyer.get(next(4)).map(|entry| Arc::clone(entry.value())));
            }),
        ],
    );
    compare(
        "memory hit, shared, and the value copied",
        100_000,
        vec![
            candidate("prefork-cache, blocking", || {
                let found = cache.blocking().get_shared::<Widget>(next(0)).expect("a hit");
                black_box(found.map(|widget| Widget::clone(&widget)));
            }),
            candidate("moka, cloned", || {
                black_box(moka.get(next(1)).map(|widget| Widget::clone(&widget)));
            }),
            candidate("moka, with an expiry, cloned", || {
                black_box(expiring.get(next(5)).map(|widget| Widget::clone(&widget)));
            }),
        ],
    );
}
