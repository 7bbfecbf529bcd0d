//! The basics: a written value is read, by one key or many, until it is deleted or expires.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use prefork_cache::{Cache, ErrorKind};
use serde::{Deserialize, Serialize};

use super::{Everywhere, LONG, SHORT, assert_gone_and_loaded_again, everywhere, loads, not_called, text, until_gone};
use crate::conformance::current_thread;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Widget {
    name: String,
    parts: BTreeMap<String, f64>,
}

#[test]
fn what_is_written_is_read_and_may_be_overwritten() {
    everywhere(|cache| {
        cache.blocking().set("k", "bar", LONG).unwrap();
        assert_eq!(text(cache, "k").as_deref(), Some("bar"));
        current_thread().block_on(async {
            cache.set("k", "baz", LONG).await.unwrap();
            assert_eq!(cache.get::<String>("k").await.unwrap().as_deref(), Some("baz"));
        });
    });
}

#[test]
fn values_of_every_kind_come_back_as_they_were() {
    everywhere(|cache| {
        let cache = cache.blocking();
        let widget = Widget { name: "cog".into(), parts: BTreeMap::from([("tooth".into(), 0.5)]) };
        cache.set("structure", &widget, LONG).unwrap();
        assert_eq!(cache.get("structure").unwrap(), Some(widget));
        cache.set("map", &BTreeMap::from([("a", "b")]), LONG).unwrap();
        assert_eq!(cache.get("map").unwrap(), Some(BTreeMap::from([("a".to_owned(), "b".to_owned())])));
        cache.set("integer", &1, LONG).unwrap();
        assert_eq!(cache.get("integer").unwrap(), Some(1));
        cache.set("false", &false, LONG).unwrap();
        assert_eq!(cache.get("false").unwrap(), Some(false));
    });
}

/// The type is `Option` where Ruby has `nil`: a stored `None` is a value and is not loaded again.
#[test]
fn nothing_is_a_value_where_the_type_allows_it() {
    everywhere(|cache| {
        let cache = cache.blocking();
        cache.set("k", &None::<String>, LONG).unwrap();
        assert!(cache.exists("k").unwrap());
        assert_eq!(cache.get::<Option<String>>("k").unwrap(), Some(None));
        assert_eq!(cache.fetch("k", LONG, not_called::<Option<String>>), Ok(None));
        assert_eq!(cache.get::<String>("k").unwrap(), None, "a reader that expects a string gets a miss");
    });
}

#[test]
fn a_stored_value_is_a_copy() {
    everywhere(|cache| {
        let mut bar = String::from("bar");
        cache.blocking().set("k", &bar, LONG).unwrap();
        bar.push_str(", changed");
        assert_eq!(text(cache, "k").as_deref(), Some("bar"));
    });
}

#[test]
fn a_fetch_of_what_is_there_neither_loads_nor_writes() {
    everywhere(|cache| {
        cache.blocking().set("k", "bar", LONG).unwrap();
        assert_eq!(cache.blocking().fetch("k", LONG, not_called::<String>).as_deref(), Ok("bar"));
        let fetched = current_thread().block_on(cache.fetch("k", LONG, async || not_called::<String>()));
        assert_eq!(fetched.as_deref(), Ok("bar"));
        assert_eq!(text(cache, "k").as_deref(), Some("bar"));
        assert_eq!(cache.stats().loads, 0);
    });
}

#[test]
fn a_fetch_of_what_is_missing_loads_it_once_and_keeps_it() {
    everywhere(|cache| {
        let key = "a 16-byte string";
        assert_eq!(cache.blocking().fetch(key, LONG, || Ok::<_, Infallible>(key.len())), Ok(16));
        assert_eq!(cache.blocking().get(key).unwrap(), Some(16_usize));
        assert_eq!(cache.blocking().fetch(key, LONG, not_called), Ok(16_usize));
    });
}

#[test]
fn a_loader_that_finds_nothing_may_leave_nothing_behind() {
    everywhere(|cache| {
        let missing = cache.blocking().fetch("k", LONG, || Err::<String, _>("there is none"));
        assert_eq!(missing, Err("there is none"));
        assert!(!cache.blocking().exists("k").unwrap());
    });
}

#[test]
fn many_are_read_in_the_order_of_their_keys() {
    everywhere(|cache| {
        for (key, value) in [("foo", "bar"), ("fu", "baz"), ("fud", "biz")] {
            cache.blocking().set(key, value, LONG).unwrap();
        }
        let found: Vec<Option<String>> =
            cache.blocking().get_many(&["fu", "nothing", "foo"]).into_iter().map(Result::unwrap).collect();
        assert_eq!(found, [Some("baz".into()), None, Some("bar".into())]);
    });
}

#[test]
fn many_are_written_at_once() {
    everywhere(|cache| {
        let stored = cache.blocking().set_many(&[("one", 1), ("two", 2)], LONG);
        assert!(stored.len() == 2 && stored.iter().all(Result::is_ok), "{stored:?}");
        assert_eq!(cache.blocking().get("one").unwrap(), Some(1));
        assert_eq!(cache.blocking().get("two").unwrap(), Some(2));
    });
}

#[test]
fn many_are_deleted_at_once_and_each_says_whether_it_was_there() {
    everywhere(|cache| {
        let cache = cache.blocking();
        cache.set_many(&[("one", 1), ("two", 2)], LONG).into_iter().for_each(Result::unwrap);
        let deleted = cache.delete_many(&["one", "nothing", "two"]);
        assert_eq!(deleted.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [true, false, true]);
        assert!(!cache.exists("one").unwrap());
        assert!(!cache.exists("two").unwrap());
    });
}

#[test]
fn none_at_all_are_read_written_and_deleted() {
    everywhere(|cache| {
        let blocking = cache.blocking();
        assert!(blocking.get_many::<String>(&[""; 0]).is_empty());
        assert!(blocking.set_many(&[] as &[(&str, u8)], LONG).is_empty());
        assert!(blocking.delete_many(&[""; 0]).is_empty());
        current_thread().block_on(async {
            assert!(cache.get_many::<String>(&[""; 0]).await.is_empty());
            assert!(cache.set_many(&[] as &[(&str, u8)], LONG).await.is_empty());
            assert!(cache.delete_many(&[""; 0]).await.is_empty());
        });
        assert_eq!(cache.stats().errors, 0);
    });
}

#[test]
fn a_key_in_another_case_is_another_key() {
    everywhere(|cache| {
        cache.blocking().set("case_sensitive_key", "bar", LONG).unwrap();
        assert_eq!(text(cache, "CASE_SENSITIVE_KEY"), None);
    });
}

#[test]
fn the_empty_key_is_refused_and_no_other() {
    everywhere(|cache| {
        let blocking = cache.blocking();
        let refusals = [
            blocking.set("", "bar", LONG).err(),
            blocking.get::<String>("").err(),
            blocking.delete("").err(),
            blocking.increment("", 1, LONG).err(),
            blocking.set_many(&[("", "bar")], LONG).remove(0).err(),
            blocking.get_many::<String>(&[""]).remove(0).err(),
            current_thread().block_on(cache.get::<String>("")).err(),
        ];
        for refusal in refusals {
            assert_eq!(refusal.map(|error| error.kind()), Some(ErrorKind::InvalidKey));
        }
        for key in ["foo", "0", " ", "[]", "foo/2"] {
            blocking.set(key, "bar", LONG).unwrap();
            assert_eq!(blocking.get::<String>(key).unwrap().as_deref(), Some("bar"), "{key:?}");
            assert!(blocking.delete(key).unwrap(), "{key:?}");
        }
    });
}

#[test]
fn what_is_deleted_is_gone_and_what_was_not_there_says_so() {
    everywhere(|cache| {
        let cache = cache.blocking();
        cache.set("k", "bar", LONG).unwrap();
        assert!(cache.exists("k").unwrap());
        assert!(!cache.exists("nothing").unwrap());
        assert!(cache.delete("k").unwrap());
        assert!(!cache.exists("k").unwrap());
        assert!(!cache.delete("k").unwrap());
    });
}

/// However the entry was written. Entries with a longer TTL are still stored.
#[test]
fn an_entry_is_gone_after_its_time() {
    let everywhere = Everywhere::new();
    let short_lived = ["set", "loaded", "one of many"];
    everywhere.each(|cache| {
        cache.blocking().set("set", "bar", SHORT).unwrap();
        assert_eq!(cache.blocking().fetch("loaded", SHORT, loads(1)), Ok(1));
        cache.blocking().set_many(&[("one of many", 1)], SHORT).into_iter().for_each(Result::unwrap);
        cache.blocking().set("spam", "egg", LONG).unwrap();
    });
    everywhere.each(|cache| {
        short_lived.iter().for_each(|key| until_gone(cache, key));
        assert_eq!(text(cache, "spam").as_deref(), Some("egg"));
        let found = cache.blocking().get_many::<String>(&["set", "spam"]);
        let found: Vec<Option<String>> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, [None, Some("egg".into())]);
    });
}

/// Without `stale_for`. The tests of staleness are in `expiry`.
#[test]
fn an_expired_entry_is_loaded_anew_and_nobody_sees_the_old_one_meanwhile() {
    let everywhere = Everywhere::new();
    everywhere.each(|cache| cache.blocking().set("k", "bar", SHORT).unwrap());
    everywhere.each(assert_gone_and_loaded_again);
}

#[test]
fn a_time_to_live_that_makes_no_sense_is_refused() {
    everywhere(|cache| {
        let error = cache.blocking().set("k", "bar", Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTtl);
        assert!(!cache.blocking().exists("k").unwrap());
    });
}

/// An invalid expiry does not cost the caller the value. It is reported, and the value is not stored.
#[test]
fn a_fetch_with_a_refused_expiry_answers_and_tells() {
    Everywhere::new().each_store(|store| {
        let (report, reports) = mpsc::channel();
        let cache = Cache::builder(Arc::clone(store)).on_error(move |error| report.send(error.kind()).unwrap()).build();
        assert_eq!(cache.blocking().fetch("k", Duration::ZERO, loads(1)), Ok(1));
        assert!(!cache.blocking().exists("k").unwrap());
        assert_eq!(reports.try_iter().collect::<Vec<_>>(), [ErrorKind::InvalidTtl]);
    });
}

/// Punctuation, spaces and quotes, for a value and for a counter.
#[test]
fn a_key_may_hold_any_punctuation() {
    everywhere(|cache| counts_under(cache, "#/:*(<+=> )&$%@?;'\"'`~-"));
}

/// Writes, reads, deletes and counts under a key.
pub(super) fn counts_under(cache: &Cache, key: &str) {
    let cache = cache.blocking();
    cache.set_raw(key, "1", LONG).unwrap();
    assert_eq!(cache.get_raw(key).unwrap().as_deref(), Some(&b"1"[..]));
    assert!(cache.delete(key).unwrap());
    assert_eq!(cache.get_raw(key).unwrap(), None);
    cache.set_raw(key, "2", LONG).unwrap();
    assert_eq!(cache.increment(key, 1, LONG).unwrap(), 3);
    assert_eq!(cache.decrement(key, 1, LONG).unwrap(), 2);
    assert_eq!(cache.counter(key).unwrap(), Some(2));
}

#[test]
fn a_key_may_be_very_long() {
    everywhere(|cache| {
        let key = "0123456789abcdef".repeat(2048);
        let longer = format!("{key}x");
        cache.blocking().set(&key, "bar", LONG).unwrap();
        assert_eq!(text(cache, &key).as_deref(), Some("bar"));
        assert_eq!(cache.blocking().fetch(&key, LONG, not_called::<String>).as_deref(), Ok("bar"));
        assert_eq!(text(cache, &longer), None);
        let found = cache.blocking().get_many::<String>(&[&key, &longer]);
        assert_eq!(found.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [Some("bar".into()), None]);
        assert!(cache.blocking().delete(&key).unwrap());
    });
}

/// Where Rails notifies subscribers, a cache has statistics.
#[test]
fn hits_misses_and_loads_are_counted() {
    everywhere(|cache| {
        let counted = || {
            let stats = cache.stats();
            [stats.hits, stats.misses, stats.loads]
        };
        assert_eq!(cache.blocking().fetch("k", LONG, loads(1)), Ok(1));
        assert_eq!(counted(), [0, 1, 1], "a miss");
        assert_eq!(cache.blocking().fetch("k", LONG, loads(1)), Ok(1));
        assert_eq!(counted(), [1, 1, 1], "a hit");
    });
}
