//! Mistakes in a program that uses the cache are refused where they are made, or reported.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use prefork_cache::stores::{MemoryStore, from_url};
use prefork_cache::{Cache, ErrorKind, Expiry};

use crate::conformance::current_thread;
use crate::unreadable::reporting;
use support::servers::free_port;

const TTL: Duration = Duration::from_secs(600);

#[test]
fn an_invalid_expiry_is_refused_where_it_is_made() {
    let mistakes: [fn() -> Expiry; 5] = [
        || Expiry::after(TTL).refresh_ahead(TTL),
        || Expiry::after(TTL).jitter(1.5),
        || Expiry::after(TTL).jitter(f64::NAN),
        || Expiry::NEVER.jitter(-0.1),
        || Expiry::after(TTL).stale_for(Duration::MAX),
    ];
    for (number, mistake) in mistakes.into_iter().enumerate() {
        assert!(catch_unwind(AssertUnwindSafe(mistake)).is_err(), "{number}");
    }
}

/// The remaining time may have any length: a value that is about to expire is kept until it does.
#[test]
fn refresh_ahead_may_be_longer_than_the_remaining_time() {
    let cache = Cache::builder(MemoryStore::new()).build();
    let soon = Expiry::at(SystemTime::now() + TTL).refresh_ahead(2 * TTL);
    cache.blocking().set("k", &1, soon).unwrap();
    assert_eq!(cache.blocking().get("k").unwrap(), Some(1));
    assert_eq!(cache.blocking().fetch("k", TTL, || Ok::<_, Infallible>(2)), Ok(2), "the value is due for a refresh");
}

#[test]
fn failures_that_a_fetch_ignores_are_reported_with_cache_and_verb() {
    let (cache, reports) = reporting(|builder| builder.name("prices"));
    let load = || Ok::<_, Infallible>(1);
    let cache = cache.blocking();
    cache.fetch("", TTL, load).unwrap();
    cache.fetch("k", Duration::ZERO, load).unwrap();
    cache.fetch_raw("k", Duration::ZERO, || Ok::<_, Infallible>("1")).unwrap();
    cache.fetch_many(&[""], TTL, |_| vec![load()]).pop().unwrap().unwrap();
    cache.set("text", "hello", TTL).unwrap();
    assert_eq!(cache.get::<u8>("text").unwrap(), None);
    let reported: Vec<_> =
        reports.lock().unwrap().iter().map(|error| (error.kind(), error.verb().map(str::to_owned))).collect();
    let verb = |kind, verb: &str| (kind, Some(verb.to_owned()));
    assert_eq!(
        reported,
        [
            verb(ErrorKind::InvalidKey, "fetch"),
            verb(ErrorKind::InvalidTtl, "fetch"),
            verb(ErrorKind::InvalidTtl, "fetch_raw"),
            verb(ErrorKind::InvalidKey, "fetch_many"),
            verb(ErrorKind::Decode, "get"),
        ]
    );
    assert!(reports.lock().unwrap().iter().all(|error| error.cache() == Some("prices")));
}

/// It may read the same cache: for the text of a log message, or for a flag that turns the log off.
#[test]
fn an_observer_is_not_called_for_its_own_fetches() {
    for is_blocking in [true, false] {
        let this = Arc::new(OnceLock::<Cache>::new());
        let calls = Arc::new(AtomicUsize::new(0));
        let (inner, counted) = (Arc::clone(&this), Arc::clone(&calls));
        let dead = from_url(&format!("redis://127.0.0.1:{}?retry_after=1m&failures=1", free_port())).unwrap();
        let cache = Cache::builder(dead).on_error(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            let cache = inner.get().unwrap();
            assert_eq!(
                cache.blocking().fetch("k", TTL, || Ok::<_, Infallible>(1)),
                Ok(1),
                "even for the key that is loaded"
            );
        });
        let cache = this.get_or_init(|| cache.build());
        let fetched = if is_blocking {
            cache.blocking().fetch("k", TTL, || Ok::<_, Infallible>(2))
        } else {
            current_thread().block_on(cache.fetch("k", TTL, async || Ok::<_, Infallible>(2)))
        };
        assert_eq!(fetched, Ok(2));
        let outer = calls.load(Ordering::SeqCst);
        assert!((1..=4).contains(&outer), "{outer}");
        assert!(cache.stats().errors > outer as u64, "failures inside the observer are counted");
    }
}

/// The failure is reported while the flight is led: the observer must not wait for that flight.
#[test]
fn an_observer_does_not_wait_for_the_load_it_observes() {
    let this = Arc::new(OnceLock::<Cache>::new());
    let inner = Arc::clone(&this);
    let cache = Cache::builder(MemoryStore::new()).on_error(move |_| {
        let fetched = inner.get().unwrap().blocking().fetch("k", TTL, || Ok::<_, Infallible>(Some(Some(3))));
        assert_eq!(fetched, Ok(Some(Some(3))));
    });
    let cache = this.get_or_init(|| cache.build());
    let fetched = cache.blocking().fetch("k", TTL, || Ok::<_, Infallible>(Some(None::<u8>)));
    assert_eq!(fetched, Ok(Some(None)));
}
