//! The various types of loaders, keys and settings that programs have.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, NullStore};
use prefork_cache::{Cache, Clock, Codec, ErrorKind, Expiry, Loaded, Ttl};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::everywhere;
use crate::conformance::multi_thread;

const TTL: Duration = Duration::from_secs(600);

async fn fetch_through_a_helper<T, F>(cache: &Cache, key: &str, load: impl FnOnce() -> F) -> Result<T, Infallible>
where
    T: Serialize + DeserializeOwned,
    F: Future<Output = Result<T, Infallible>>,
{
    cache.fetch(key, TTL, load).await
}

type Boxed<T> = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<T, Infallible>> + Send>> + Send>;

#[test]
fn loaders_of_every_type_in_a_spawned_task() {
    let cache = Cache::builder(MemoryStore::new()).build();
    multi_thread().block_on(async {
        let task = tokio::spawn(async move {
            let words = [String::from("borrowed")];
            let borrowing = cache.fetch("a", TTL, async || Ok::<_, Infallible>(words[0].clone())).await.unwrap();
            assert_eq!(borrowing, words[0]);
            assert_eq!(cache.fetch("b", TTL, || async { Ok::<_, Infallible>(2) }).await, Ok(2));
            assert_eq!(cache.fetch("c", TTL, || std::future::ready(Ok::<_, Infallible>(3))).await, Ok(3));
            assert_eq!(fetch_through_a_helper(&cache, "d", async || Ok(words.len())).await, Ok(1));
            let boxed: Boxed<u32> = Box::new(|| Box::pin(async { Ok(5) }));
            assert_eq!(cache.fetch("e", TTL, boxed).await, Ok(5));
            let moved = words;
            let load = async move || Ok::<_, Infallible>(moved.concat());
            assert_eq!(cache.fetch_detached("f", TTL, load).await.unwrap(), "borrowed");
            let boxed: Boxed<u32> = Box::new(|| Box::pin(async { Ok(7) }));
            assert_eq!(cache.fetch_detached("g", TTL, boxed).await, Ok(7));
            let suffix = String::from("!");
            let load = async |missing: Vec<&str>| {
                let all = missing.into_iter().map(|key| Ok::<_, Infallible>(format!("{key}{suffix}")));
                all.collect()
            };
            assert_eq!(cache.fetch_many(&["x", "y"], TTL, load).await, [Ok("x!".to_owned()), Ok("y!".to_owned())]);
            let raw = cache.fetch_raw("h", TTL, async || Ok::<_, Infallible>(vec![8])).await.unwrap();
            assert_eq!(raw, &[8][..]);
            let load = async || Ok::<_, Infallible>(Loaded::uncached(9));
            assert_eq!(cache.fetch_loaded("i", load).await, Ok(9));
        });
        task.await.unwrap();
    });
}

#[test]
fn keys_of_every_type() {
    everywhere(|cache| {
        let cache = cache.blocking();
        let owned: Vec<String> = vec!["a".into(), "b".into()];
        let entries: Vec<(String, u32)> = owned.iter().cloned().zip(1..).collect();
        assert!(cache.set_many(&entries, TTL).into_iter().all(|stored| stored.is_ok()));
        let found = |found: Vec<prefork_cache::Result<Option<u32>>>| -> Vec<_> {
            found.into_iter().map(Result::unwrap).collect()
        };
        assert_eq!(found(cache.get_many(&owned)), [Some(1), Some(2)]);
        assert_eq!(found(cache.get_many(&[Arc::<str>::from("b")])), [Some(2)]);
        assert_eq!(cache.get_many_raw(&owned).len(), 2);
        let more = ["a".to_owned(), "c".to_owned()];
        let load = |missing: &[&str]| {
            assert_eq!(missing, ["c"]);
            vec![Ok::<u32, Infallible>(3)]
        };
        assert_eq!(cache.fetch_many(&more, TTL, load), [Ok(1), Ok(3)]);
        assert!(cache.delete_many(&owned).into_iter().all(|deleted| deleted.unwrap()));
    });
}

#[test]
fn each_value_of_a_batch_has_its_own_expiry() {
    let clock = Clock::manual();
    let cache = Cache::builder(MemoryStore::new()).clock(clock.clone()).build();
    let cache = cache.blocking();
    let fetched = cache.fetch_many_loaded(&["short", "long", "never", "failed"], |missing| {
        assert_eq!(missing.len(), 4);
        vec![Ok(Loaded::new(1, TTL)), Ok(Loaded::new(2, 2 * TTL)), Ok(Loaded::uncached(3)), Err("no")]
    });
    assert_eq!(fetched, [Ok(1), Ok(2), Ok(3), Err("no")]);
    let stored = || ["short", "long", "never", "failed"].map(|key| cache.exists(key).unwrap());
    assert_eq!(stored(), [true, true, false, false]);
    clock.advance(TTL);
    assert_eq!(stored(), [false, true, false, false]);
}

#[test]
fn the_default_expiry_is_the_builders() {
    let clock = Clock::manual();
    let cache = Cache::builder(MemoryStore::new()).default_expiry(TTL).clock(clock.clone()).build();
    let cache = cache.blocking();
    let load = || Ok::<_, Infallible>(1);
    assert_eq!(cache.fetch("a", Expiry::DEFAULT, load), Ok(1));
    cache.set("b", &1, Expiry::default()).unwrap();
    assert!(cache.set_many(&[("c", 1)], Expiry::DEFAULT)[0].is_ok());
    cache.fetch_loaded("d", || Ok::<_, Infallible>(Loaded::new(1, Expiry::DEFAULT))).unwrap();
    cache.set_raw("raw", "1", Expiry::DEFAULT).unwrap();
    cache.increment("n", 1, Expiry::DEFAULT).unwrap();
    assert!(["a", "b", "c", "d"].into_iter().all(|key| cache.exists(key).unwrap()));
    clock.advance(TTL);
    assert!(!["a", "b", "c", "d"].into_iter().any(|key| cache.exists(key).unwrap()));
    let without = Cache::builder(MemoryStore::new()).build();
    let refused = without.blocking().set("k", &1, Expiry::DEFAULT).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidTtl);
    assert_eq!(refused.to_string(), "Expiry::DEFAULT of a cache without a default_expiry");
}

#[test]
fn raw_values_can_be_added() {
    everywhere(|cache| {
        let cache = cache.blocking();
        assert!(cache.add_raw("k", "1", TTL).unwrap());
        assert!(!cache.add_raw("k", "2", TTL).unwrap());
        assert_eq!(cache.get_raw("k").unwrap().as_deref(), Some(&b"1"[..]));
    });
}

#[test]
fn the_remaining_time_of_an_entry_is_returned() {
    everywhere(|cache| {
        let cache = cache.blocking();
        let assert_remaining = |key, at_most: Duration| {
            let left = cache.expires_in(key).unwrap();
            assert!(matches!(left, Some(Ttl::After(left)) if left > TTL / 2 && left <= at_most), "{key}: {left:?}");
        };
        cache.set("typed", &1, Expiry::after(TTL).stale_for(TTL)).unwrap();
        assert_remaining("typed", 2 * TTL);
        cache.set_raw("raw", "1", TTL).unwrap();
        assert_remaining("raw", TTL);
        cache.increment("n", 1, TTL).unwrap();
        assert_remaining("n", TTL);
        cache.append("raw", "2", Expiry::NEVER).unwrap();
        assert_remaining("raw", TTL);
        assert_eq!(cache.get_raw("raw").unwrap().as_deref(), Some(&b"12"[..]));
        for key in ["typed", "raw", "n"] {
            cache.touch(key, Expiry::NEVER).unwrap();
            assert_eq!(cache.expires_in(key).unwrap(), Some(Ttl::Never), "{key}");
        }
        assert_eq!(cache.expires_in("nothing").unwrap(), None);
        assert_eq!(cache.append("", "1", TTL).unwrap_err().kind(), ErrorKind::InvalidKey);
        assert_eq!(cache.append("k", "1", Duration::ZERO).unwrap_err().kind(), ErrorKind::InvalidTtl);
        let too_large = vec![0; 600 << 20];
        assert_eq!(cache.append("k", too_large, TTL).unwrap_err().kind(), ErrorKind::ValueTooLarge);
    });
    let clock = Clock::manual();
    let cache = Cache::builder(MemoryStore::new()).clock(clock.clone()).build();
    cache.blocking().set("k", &1, TTL).unwrap();
    clock.advance(TTL / 3);
    assert_eq!(cache.blocking().expires_in("k").unwrap(), Some(Ttl::After(TTL * 2 / 3)));
    clock.advance(TTL);
    assert_eq!(cache.blocking().expires_in("k").unwrap(), None);
    assert!(!cache.blocking().touch("k", TTL).unwrap(), "the entry has expired");
    assert!(!cache.blocking().replace("k", &2, TTL).unwrap());
    assert!(cache.blocking().add("k", &3, TTL).unwrap());
}

#[test]
fn a_cache_can_be_registered_once_or_as_a_replacement() {
    let create = |part: &str| Cache::builder(MemoryStore::new()).name("shapes").namespace(part);
    let first = create("first").register_if_absent();
    assert_eq!(first.name(), "shapes");
    let again = create("again").register_if_absent();
    assert!(format!("{again:?}").contains("\"first:\""), "{again:?}");
    create("other").register();
    let shown = || format!("{:?}", Cache::named("shapes"));
    assert!(shown().contains("\"other:\""));
    create("instead").register_instead();
    assert!(shown().contains("\"instead:\""));
    assert!(Cache::unregister("shapes"));
    assert!(Cache::named("shapes").is_none() && !Cache::unregister("shapes"));
    first.blocking().set("k", &1, TTL).unwrap();
}

#[test]
fn settings_are_read_from_a_configuration() {
    #[derive(serde::Deserialize)]
    struct Settings {
        expiry: Expiry,
        codec: Codec,
    }
    let settings: Settings = serde_json::from_str(r#"{ "expiry": "60s, stale_for=1h", "codec": "json" }"#).unwrap();
    let minute = Duration::from_secs(60);
    assert_eq!(settings.expiry, Expiry::after(minute).stale_for(60 * minute));
    assert_eq!(
        (settings.codec, serde_json::to_string(&Codec::MessagePack).unwrap()),
        (Codec::Json, "\"messagepack\"".into())
    );
    let refused = "xml".parse::<Codec>().unwrap_err();
    assert_eq!(refused.to_string(), "the codec \"xml\" is not messagepack or json");
    Cache::builder(MemoryStore::default()).build();
    Cache::builder(NullStore::default()).build();
}
