//! Compression: off by default, and used only where it saves space.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use prefork_cache::{Cache, CacheStore, Codec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Everywhere, LONG, everywhere};

/// Smaller than any value.
const LOW: usize = 1;
const MIDDLE: usize = 1024;
const HIGH: usize = 1 << 20;

fn small() -> String {
    "0".repeat(100)
}

fn large() -> String {
    "0".repeat(2048)
}

fn object(data: String) -> BTreeMap<String, String> {
    BTreeMap::from([("data".to_owned(), data)])
}

fn compressing(store: &Arc<dyn CacheStore>, threshold: usize) -> Cache {
    Cache::builder(Arc::clone(store)).compress_above(threshold).build()
}

/// The size of a value in the store, after checking that it is read back unchanged.
fn size<T: Serialize + DeserializeOwned + PartialEq + Debug>(cache: &Cache, value: &T) -> usize {
    cache.blocking().set("k", value, LONG).unwrap();
    assert_eq!(cache.blocking().get::<T>("k").unwrap().as_ref(), Some(value));
    cache.blocking().get_raw("k").unwrap().expect("it was stored").len()
}

#[test]
fn nothing_is_compressed_unless_one_asks() {
    everywhere(|cache| {
        assert!(size(cache, &large()) > 2048);
        assert!(size(cache, &object(large())) > 2048);
    });
}

#[test]
fn what_is_larger_than_the_threshold_takes_less_room() {
    Everywhere::new().each_store(|store| {
        for codec in [Codec::MessagePack, Codec::Json] {
            let plain = Cache::builder(Arc::clone(store)).codec(codec).build();
            let cache = Cache::builder(Arc::clone(store)).codec(codec).compress_above(MIDDLE).build();
            assert!(size(&cache, &large()) < size(&plain, &large()), "{codec:?}");
            assert!(size(&cache, &object(large())) < size(&plain, &object(large())), "{codec:?}");
            assert_eq!(size(&cache, &small()), size(&plain, &small()), "{codec:?}");
            assert_eq!(size(&cache, &object(small())), size(&plain, &object(small())), "{codec:?}");
        }
    });
}

#[test]
fn the_threshold_may_be_low_or_high() {
    Everywhere::new().each_store(|store| {
        let plain = Cache::builder(Arc::clone(store)).build();
        let [low, high] = [LOW, HIGH].map(|threshold| compressing(store, threshold));
        for text in [small(), large()] {
            assert!(size(&low, &text) < size(&plain, &text));
            assert!(size(&low, &object(text.clone())) < size(&plain, &object(text.clone())));
            assert_eq!(size(&high, &text), size(&plain, &text));
            assert_eq!(size(&high, &object(text.clone())), size(&plain, &object(text.clone())));
        }
    });
}

#[test]
fn what_would_not_become_smaller_stays_as_it_is() {
    Everywhere::new().each_store(|store| {
        let (plain, cache) = (Cache::builder(Arc::clone(store)).build(), compressing(store, LOW));
        assert_eq!(size(&cache, &None::<String>), size(&plain, &None::<String>));
        assert_eq!(size(&cache, &String::new()), size(&plain, &String::new()));
        assert_eq!(size(&cache, &1.2345), size(&plain, &1.2345));
        let every_byte: Vec<u8> = (0..128).collect();
        assert_eq!(size(&cache, &every_byte), size(&plain, &every_byte));
    });
}

/// The setting applies to writers. Readers need none.
#[test]
fn what_was_compressed_is_read_under_any_setting() {
    Everywhere::new().each_store(|store| {
        let (plain, cache) = (Cache::builder(Arc::clone(store)).build(), compressing(store, LOW));
        for (writer, reader) in [(&cache, &plain), (&plain, &cache)] {
            writer.blocking().set("k", &large(), LONG).unwrap();
            assert_eq!(reader.blocking().get("k").unwrap(), Some(large()));
        }
    });
}
