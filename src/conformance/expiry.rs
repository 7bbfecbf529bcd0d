//! Checks of expiry.

use std::time::{Duration, Instant};

use super::keys::{LONG, fresh};
use crate::error::ErrorKind;
use crate::store::{CacheStore, Ttl, When};

/// Long enough for a busy machine to finish the writes before the entries expire. On a server whose clock has a
/// resolution of a second, an entry may live up to a second less.
const SHORT: Duration = Duration::from_secs(3);

/// How long an entry may outlive its TTL on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn wait_until_gone(store: &dyn CacheStore, keys: &[&str]) {
    let deadline = Instant::now() + SHORT + PATIENCE;
    loop {
        let found = store.get_many(keys).await;
        let left: Vec<&&str> =
            keys.iter().zip(&found).filter(|(_, found)| !matches!(found, Ok(None))).map(|(key, _)| key).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "waited {} s too long for these to expire: {left:?}", PATIENCE.as_secs());
        std::thread::yield_now();
    }
}

/// An entry is gone after its TTL, whichever operation set it. An entry with a longer TTL, or none, still exists then.
pub async fn entries_expire(store: &dyn CacheStore) {
    let short = Ttl::After(SHORT);
    let names = ["set", "added", "replaced", "swapped", "touched", "counted", "batched"];
    let keys = names.map(fresh);
    let [set, added, replaced, swapped, touched, counted, batched] = &keys;
    let [kept, kept_by_set, kept_by_touch] = ["kept", "kept-by-set", "kept-by-touch"].map(fresh);

    for key in [&kept, replaced, swapped, touched] {
        store.set(key, "x".into(), Ttl::Never, When::Always).await.unwrap();
    }
    for key in [set, &kept_by_set, &kept_by_touch] {
        store.set(key, "x".into(), short, When::Always).await.unwrap();
    }
    assert!(store.set(added, "x".into(), short, When::IfAbsent).await.unwrap());
    assert!(store.set(replaced, "x".into(), short, When::IfPresent).await.unwrap());
    assert!(store.compare_and_set(swapped, Some(b"x"), Some("y".into()), short).await.unwrap());
    assert!(store.touch(touched, short).await.unwrap(), "there is an entry to touch");
    assert_eq!(store.increment(counted, 1, short).await.unwrap(), 1);
    store.set_many(&[(batched, "x".into())], short).await.into_iter().for_each(Result::unwrap);
    store.set(&kept_by_set, "y".into(), LONG, When::Always).await.unwrap();
    assert!(store.touch(&kept_by_touch, LONG).await.unwrap(), "there is an entry to touch");

    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    wait_until_gone(store, &names).await;
    for key in [&kept, &kept_by_set, &kept_by_touch] {
        assert!(store.get(key).await.unwrap().is_some(), "{key} has not expired");
        assert!(store.delete(key).await.unwrap());
    }
    assert!(!store.touch(set, LONG).await.unwrap(), "an expired entry cannot be touched");
    assert!(store.set(set, "x".into(), LONG, When::IfAbsent).await.unwrap(), "an expired entry is absent");
    store.delete(set).await.unwrap();
}

/// [`increment`](CacheStore::increment) sets the TTL of a counter that it creates, and of no other.
pub async fn an_increment_keeps_the_remaining_time(store: &dyn CacheStore) {
    let [short_lived, long_lived] = ["short-lived", "long-lived"].map(fresh);
    assert_eq!(store.increment(&short_lived, 1, Ttl::After(SHORT)).await.unwrap(), 1);
    let extended = store.increment(&short_lived, 1, LONG).await.unwrap();
    store.set(&long_lived, "1".into(), LONG, When::Always).await.unwrap();
    assert_eq!(store.increment(&long_lived, 1, Ttl::After(SHORT)).await.unwrap(), 2);
    // If the machine was stopped in between, the counter was a new one.
    if extended == 2 {
        wait_until_gone(store, &[&short_lived]).await;
    }
    assert!(store.get(&long_lived).await.unwrap().is_some(), "the remaining time was shortened");
    store.delete(&long_lived).await.unwrap();
}

/// A TTL of zero, or longer than a hundred years, is refused with [`ErrorKind::InvalidTtl`]. The shortest TTL is
/// accepted.
pub async fn an_invalid_ttl_is_refused(store: &dyn CacheStore) {
    let key = fresh("ttl");
    for ttl in [Duration::ZERO, Duration::MAX] {
        let refusals = [
            ("set", store.set(&key, "1".into(), Ttl::After(ttl), When::Always).await.err()),
            ("compare_and_set", store.compare_and_set(&key, None, Some("1".into()), Ttl::After(ttl)).await.err()),
            ("touch", store.touch(&key, Ttl::After(ttl)).await.err()),
            ("increment", store.increment(&key, 1, Ttl::After(ttl)).await.err()),
        ];
        for (verb, refusal) in refusals {
            assert_eq!(refusal.map(|error| error.kind()), Some(ErrorKind::InvalidTtl), "{verb} with a TTL of {ttl:?}");
        }
    }
    assert_eq!(store.get(&key).await.unwrap(), None, "a refused write has no effect");
    assert!(store.set(&key, "x".into(), Ttl::After(Duration::from_nanos(1)), When::Always).await.unwrap());
}

/// [`ttl`](CacheStore::ttl) returns the remaining time, if the store supports it, and [`append`](CacheStore::append)
/// keeps it.
pub async fn ttl_returns_the_remaining_time(store: &dyn CacheStore) {
    let key = fresh("time-left");
    let is_told = match store.ttl(&key).await {
        Ok(left) => left.is_none(),
        Err(error) if error.kind() == ErrorKind::Unsupported => return,
        Err(error) => panic!("{error}"),
    };
    assert!(is_told, "there is no entry");
    let minute = Duration::from_secs(60);
    let is_left = |left: Option<Ttl>| matches!(left, Some(Ttl::After(left)) if left > minute / 2 && left <= minute);
    store.append(&key, "a".into(), Ttl::After(minute)).await.unwrap();
    assert!(is_left(store.ttl(&key).await.unwrap()));
    store.append(&key, "b".into(), LONG).await.unwrap();
    assert!(is_left(store.ttl(&key).await.unwrap()), "an append has changed the TTL");
    store.set(&key, "c".into(), Ttl::Never, When::Always).await.unwrap();
    assert_eq!(store.ttl(&key).await.unwrap(), Some(Ttl::Never));
    store.append(&key, "d".into(), LONG).await.unwrap();
    assert_eq!(store.ttl(&key).await.unwrap(), Some(Ttl::Never));
    store.delete(&key).await.unwrap();
}
