//! Checks of operations on the whole store.

use super::keys::{LONG, fresh};
use crate::error::ErrorKind;
use crate::store::{CacheStore, When};

/// [`clear`](CacheStore::clear) removes every entry whose key starts with the prefix, whatever characters the prefix
/// contains, and no other.
pub async fn clear_removes_what_starts_with_the_prefix(store: &dyn CacheStore) {
    let base = fresh("clear");
    for prefix in ["plain:", "*", "a?c[d]", "\\", "white space ", "ä:"] {
        let prefix = format!("{base}{prefix}");
        let removed: Vec<String> = (0..50).map(|number| format!("{prefix}{number}")).chain([prefix.clone()]).collect();
        let kept = [format!("{base}abcd:1"), format!("x{prefix}"), base.clone()];
        for key in removed.iter().chain(&kept) {
            store.set(key, "x".into(), LONG, When::Always).await.unwrap();
        }
        match store.clear(&prefix).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => return,
            cleared => cleared.unwrap(),
        }
        for key in &removed {
            assert_eq!(store.get(key).await.unwrap(), None, "{key:?} starts with {prefix:?}");
        }
        for key in &kept {
            assert!(store.get(key).await.unwrap().is_some(), "{key:?} does not start with {prefix:?}");
            store.delete(key).await.unwrap();
        }
    }
}

/// After [`reset`](CacheStore::reset) and [`reconnect`](CacheStore::reconnect) the entries still exist, and the store
/// works.
pub async fn reset_and_reconnect_leave_the_store_usable(store: &dyn CacheStore) {
    let key = fresh("reset");
    store.set(&key, "before".into(), LONG, When::Always).await.unwrap();
    store.reset();
    assert_eq!(store.get(&key).await.unwrap().as_deref(), Some(&b"before"[..]), "after a reset");
    store.reconnect().await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().as_deref(), Some(&b"before"[..]), "after a reconnect");
    store.set(&key, "after".into(), LONG, When::Always).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().as_deref(), Some(&b"after"[..]));
    assert!(store.delete(&key).await.unwrap());
}
