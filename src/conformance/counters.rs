//! Checks of counters.

use super::keys::{LONG, fresh};
use crate::error::ErrorKind;
use crate::store::{CacheStore, When, read_counter};

async fn counter(store: &dyn CacheStore, key: &str) -> i64 {
    let text = store.get(key).await.unwrap().expect("the counter is there");
    read_counter(key, &text).unwrap()
}

/// [`increment`](CacheStore::increment) starts from 0, adds, subtracts, and goes up to [`i64::MAX`]. The entry is a
/// decimal string.
pub async fn counters_count(store: &dyn CacheStore) {
    let key = fresh("counter");
    for (by, sum) in [(5, 5), (0, 5), (95, 100), (-1, 99), (-99, 0), (i64::MAX, i64::MAX)] {
        assert_eq!(store.increment(&key, by, LONG).await.unwrap(), sum, "after adding {by}");
        assert_eq!(counter(store, &key).await, sum, "read after adding {by}");
    }
    store.set(&key, "41".into(), LONG, When::Always).await.unwrap();
    assert_eq!(store.increment(&key, 1, LONG).await.unwrap(), 42, "any decimal string is a counter");
    store.delete(&key).await.unwrap();
}

/// An entry that is not a decimal number, or a sum out of range, is [`ErrorKind::NotANumber`]. The entry stays
/// unchanged.
pub async fn an_increment_of_a_non_number_is_refused(store: &dyn CacheStore) {
    let key = fresh("no-counter");
    let largest = i64::MAX.to_string();
    for (held, by) in [("twelve", 1), ("1.5", 1), (largest.as_str(), 1), (largest.as_str(), i64::MAX)] {
        store.set(&key, held.to_owned().into(), LONG, When::Always).await.unwrap();
        let refusal = store.increment(&key, by, LONG).await.expect_err("this is not a counter");
        assert_eq!(refusal.kind(), ErrorKind::NotANumber, "adding {by} to {held:?}: {refusal}");
        let read = store.get(&key).await.unwrap().expect("the entry still exists");
        assert_eq!(String::from_utf8_lossy(&read).trim_end(), held, "after adding {by}");
    }
    store.delete(&key).await.unwrap();
}
