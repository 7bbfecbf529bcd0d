//! A hit in memory, beside moka as it comes, with per-entry expiry on both sides.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::Expiry;
use prefork_cache::Cache;
use prefork_cache::stores::MemoryStore;

use crate::measure::{compare, way};

const TTL: Duration = Duration::from_secs(3600);
const KEYS: usize = 1_000;

struct PerEntry;

impl Expiry<String, (Bytes, Duration)> for PerEntry {
    fn expire_after_create(&self, _: &String, entry: &(Bytes, Duration), _: Instant) -> Option<Duration> {
        Some(entry.1)
    }
}

pub(crate) fn run() {
    let keys: Vec<String> = (0..KEYS).map(|number| format!("widget:{number}")).collect();
    let value = Bytes::from(vec![b'x'; 100]);

    let bare = moka::sync::Cache::builder().max_capacity(10_000).expire_after(PerEntry).build();
    let cache = Cache::builder(MemoryStore::new()).build();
    let tenant = cache.namespace("tenant");
    for key in &keys {
        bare.insert(key.clone(), (value.clone(), TTL));
        cache.blocking().set_raw(key, value.clone(), TTL).expect("memory stores");
        tenant.blocking().set_raw(key, value.clone(), TTL).expect("memory stores");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut turn = keys.iter().cycle();
    let mut turn_bare = keys.iter().cycle();
    let mut turn_async = keys.iter().cycle();
    let mut turn_named = keys.iter().cycle();
    compare(
        "memory hit",
        200_000,
        vec![
            way("prefork-cache, blocking", || {
                let key = turn.next().expect("an endless cycle");
                black_box(cache.blocking().get_raw(key).expect("a hit"));
            }),
            way("moka", || {
                black_box(bare.get(turn_bare.next().expect("an endless cycle")).map(|entry| entry.0));
            }),
        ],
    );
    compare(
        "memory hit, in a namespace",
        200_000,
        vec![
            way("prefork-cache, blocking", || {
                let key = turn_named.next().expect("an endless cycle");
                black_box(tenant.blocking().get_raw(key).expect("a hit"));
            }),
            way("moka", || {
                black_box(bare.get(turn_bare.next().expect("an endless cycle")).map(|entry| entry.0));
            }),
        ],
    );
    typed();
    compare(
        "memory hit, awaited",
        20,
        vec![
            way("prefork-cache, 10,000 awaits", || {
                runtime.block_on(async {
                    for _ in 0..10_000 {
                        let key = turn_async.next().expect("an endless cycle");
                        black_box(cache.get_raw(key).await.expect("a hit"));
                    }
                });
            }),
            way("moka, 10,000 gets", || {
                for _ in 0..10_000 {
                    black_box(bare.get(turn_bare.next().expect("an endless cycle")).map(|entry| entry.0));
                }
            }),
        ],
    );
}

/// Decoded with each hit, beside a copy of what was put in.
fn typed() {
    type Widget = (u32, String, Vec<String>, Option<f64>);

    let words = ["round", "green", "made of brass"].map(str::to_owned).to_vec();
    let widget: Widget = (7, "a widget".to_owned(), words, Some(9.99));
    let bare = moka::sync::Cache::builder().max_capacity(10_000).build();
    bare.insert("widget:7".to_owned(), widget.clone());
    let cache = Cache::builder(MemoryStore::new()).build();
    cache.blocking().set("widget:7", &widget, TTL).expect("memory stores");
    compare(
        "memory hit, typed",
        100_000,
        vec![
            way("prefork-cache, blocking, decoded", || {
                black_box(cache.blocking().get::<Widget>("widget:7").expect("a hit"));
            }),
            way("moka, cloned", || {
                black_box(bare.get("widget:7"));
            }),
        ],
    );
}
