//! Points in time instead of durations, and stale values: what Rails calls `race_condition_ttl`.

use std::convert::Infallible;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use prefork_cache::{Cache, ErrorKind, Expiry};

use super::{Everywhere, LONG, SHORT, assert_gone_and_loaded_again, everywhere, loads, not_called, text, until_gone};
use support::wait::until;

/// Stale after a millisecond, for longer than any test takes.
fn soon_stale() -> Expiry {
    Expiry::after(Duration::from_millis(1)).stale_for(LONG)
}

/// Waits until a read finds the value stale, and checks that it is the old value.
fn until_stale(cache: &Cache, key: &str, value: &str) {
    let stale = cache.stats().stale;
    until(&format!("{key} is stale in {cache:?}"), || {
        assert_eq!(text(cache, key).as_deref(), Some(value));
        cache.stats().stale > stale
    });
}

#[test]
fn an_entry_may_last_until_a_moment() {
    let everywhere = Everywhere::new();
    everywhere.each(|cache| {
        cache.blocking().set("k", "bar", Expiry::at(SystemTime::now() + SHORT)).unwrap();
        cache.blocking().set("later", "baz", Expiry::at(SystemTime::now() + LONG)).unwrap();
    });
    everywhere.each(|cache| {
        until_gone(cache, "k");
        assert_eq!(text(cache, "later").as_deref(), Some("baz"));
    });
}

#[test]
fn a_moment_in_the_past_is_refused() {
    everywhere(|cache| {
        let past = Expiry::at(SystemTime::now() - LONG);
        assert_eq!(cache.blocking().set("k", "bar", past).unwrap_err().kind(), ErrorKind::InvalidTtl);
        assert_eq!(cache.blocking().fetch("k", past, loads("bar".to_owned())).as_deref(), Ok("bar"));
        assert!(!cache.blocking().exists("k").unwrap());
    });
}

/// While one caller loads the value again, other callers and the loader itself read the old value.
#[test]
fn a_stale_value_is_loaded_anew_by_one_caller_and_serves_the_others() {
    everywhere(|cache| {
        let fetch_without_loading = || cache.blocking().fetch("k", LONG, not_called::<String>);
        cache.blocking().set("k", "bar", soon_stale()).unwrap();
        until_stale(cache, "k", "bar");
        let load = || {
            assert_eq!(text(cache, "k").as_deref(), Some("bar"));
            let other = thread::scope(|scope| scope.spawn(fetch_without_loading).join().unwrap());
            assert_eq!(other.as_deref(), Ok("bar"));
            Ok::<_, Infallible>("baz".to_owned())
        };
        assert_eq!(cache.blocking().fetch("k", LONG, load).as_deref(), Ok("baz"));
        assert_eq!(fetch_without_loading().as_deref(), Ok("baz"));
    });
}

#[test]
fn what_replaces_a_stale_value_has_its_whole_time() {
    everywhere(|cache| {
        cache.blocking().set("k", "bar", soon_stale()).unwrap();
        until_stale(cache, "k", "bar");
        let expiry = Expiry::after(LONG).stale_for(LONG);
        assert_eq!(cache.blocking().fetch("k", expiry, loads("baz".to_owned())).as_deref(), Ok("baz"));
        let stale = cache.stats().stale;
        assert_eq!(text(cache, "k").as_deref(), Some("baz"));
        assert_eq!(cache.stats().stale, stale, "the value is fresh");
    });
}

/// Unlike in Rails, a caller whose load fails gets the old value instead of the error.
#[test]
fn a_stale_value_outlives_a_loader_that_fails() {
    Everywhere::new().each_store(|store| {
        let cache = Cache::builder(Arc::clone(store)).load_retry_delay(Duration::from_millis(1)).build();
        cache.blocking().set("k", "bar", soon_stale()).unwrap();
        until_stale(&cache, "k", "bar");
        assert_eq!(cache.blocking().fetch("k", LONG, || Err::<String, _>("not now")).as_deref(), Ok("bar"));
        assert_eq!(text(&cache, "k").as_deref(), Some("bar"));
        let fetch = || cache.blocking().fetch("k", LONG, loads("baz".to_owned())).unwrap();
        until("the value is loaded again", || fetch() == "baz");
    });
}

#[test]
fn a_stale_value_is_gone_in_the_end() {
    let everywhere = Everywhere::new();
    everywhere.each(|cache| {
        let expiry = Expiry::after(Duration::from_millis(1)).stale_for(SHORT);
        cache.blocking().set("k", "bar", expiry).unwrap();
    });
    everywhere.each(assert_gone_and_loaded_again);
}
