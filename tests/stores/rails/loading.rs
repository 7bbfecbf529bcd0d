//! Loading although an entry is stored, and loaders that decide whether and how long their value is stored.

use std::convert::Infallible;

use prefork_cache::{Expiry, Loaded};

use super::{Everywhere, LONG, SHORT, everywhere, loads, not_called, text, until_gone};
use crate::conformance::current_thread;

#[test]
fn a_forced_fetch_loads_and_stores_whatever_is_there() {
    everywhere(|cache| {
        let forced = cache.force(true);
        cache.blocking().set("k", "bar", LONG).unwrap();
        assert_eq!(forced.blocking().fetch("k", LONG, loads("foo_bar".to_owned())).as_deref(), Ok("foo_bar"));
        assert_eq!(cache.blocking().fetch("k", LONG, not_called::<String>).as_deref(), Ok("foo_bar"));
        let fetched = current_thread().block_on(forced.fetch("k", LONG, async || loads("baz".to_owned())()));
        assert_eq!(fetched.as_deref(), Ok("baz"));
        assert_eq!(forced.force(false).blocking().fetch("k", LONG, not_called::<String>).as_deref(), Ok("baz"));
    });
}

#[test]
fn a_forced_fetch_does_not_read() {
    everywhere(|cache| {
        cache.blocking().set("k", "bar", LONG).unwrap();
        assert_eq!(cache.force(true).blocking().fetch("k", LONG, loads("baz".to_owned())).as_deref(), Ok("baz"));
        assert_eq!((cache.stats().hits, cache.stats().misses), (0, 0));
    });
}

#[test]
fn a_loader_that_finds_nothing_may_have_it_not_cached() {
    everywhere(|cache| {
        let nothing = || Ok::<_, Infallible>(Loaded::uncached(None::<String>));
        assert_eq!(cache.blocking().fetch_loaded("k", nothing), Ok(None));
        assert!(!cache.blocking().exists("k").unwrap());
        let something = || Ok::<_, Infallible>(Loaded::new(Some("bar".to_owned()), Expiry::after(LONG)));
        assert_eq!(cache.blocking().fetch_loaded("k", something), Ok(Some("bar".to_owned())));
        assert!(cache.blocking().exists("k").unwrap());
    });
}

/// The expiry applies to no other value.
#[test]
fn a_loader_may_choose_the_expiry_of_its_value() {
    let everywhere = Everywhere::new();
    everywhere.each(|cache| {
        let short = || Ok::<_, Infallible>(Loaded::new("bar".to_owned(), Expiry::after(SHORT)));
        assert_eq!(cache.blocking().fetch_loaded("short", short).as_deref(), Ok("bar"));
        let long = async || Ok::<_, Infallible>(Loaded::new("baz".to_owned(), Expiry::after(LONG)));
        assert_eq!(current_thread().block_on(cache.fetch_loaded("long", long)).as_deref(), Ok("baz"));
        assert_eq!(cache.blocking().fetch("other", LONG, loads("biz".to_owned())).as_deref(), Ok("biz"));
    });
    everywhere.each(|cache| {
        until_gone(cache, "short");
        assert_eq!(text(cache, "long").as_deref(), Some("baz"));
        assert_eq!(text(cache, "other").as_deref(), Some("biz"));
    });
}
