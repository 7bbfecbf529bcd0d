//! Versions: the key stays the same, and a value of another version is a miss.

use prefork_cache::Cache;

use super::{LONG, everywhere, loads, not_called, text};
use crate::conformance::current_thread;

/// Handles of two versions.
fn versions(cache: &Cache) -> [Cache; 2] {
    ["1", "2"].map(|version| cache.version(version))
}

#[test]
fn what_was_written_is_read_under_its_version_alone() {
    everywhere(|cache| {
        let [one, two] = versions(cache);
        one.blocking().set("k", "bar", LONG).unwrap();
        assert_eq!(text(&one, "k").as_deref(), Some("bar"));
        assert_eq!(text(&two, "k"), None);
        let found = current_thread().block_on(two.get_many::<String>(&["k"])).remove(0);
        assert_eq!(found.unwrap(), None);
    });
}

#[test]
fn what_was_loaded_is_read_under_its_version_alone() {
    everywhere(|cache| {
        let [one, two] = versions(cache);
        assert_eq!(one.blocking().fetch("k", LONG, loads("bar".to_owned())).as_deref(), Ok("bar"));
        assert_eq!(text(&one, "k").as_deref(), Some("bar"));
        assert_eq!(text(&two, "k"), None);
    });
}

#[test]
fn a_fetch_under_a_new_version_loads_and_replaces_the_old_one() {
    everywhere(|cache| {
        let [one, two] = versions(cache);
        assert_eq!(one.blocking().fetch("k", LONG, loads("bar".to_owned())).as_deref(), Ok("bar"));
        assert_eq!(one.blocking().fetch("k", LONG, not_called::<String>).as_deref(), Ok("bar"));
        assert_eq!(two.blocking().fetch("k", LONG, loads("bu".to_owned())).as_deref(), Ok("bu"));
        assert_eq!(two.blocking().fetch("k", LONG, not_called::<String>).as_deref(), Ok("bu"));
        assert_eq!(text(&one, "k"), None, "the only entry has the new version");
    });
}

#[test]
fn an_entry_exists_under_its_version_alone() {
    everywhere(|cache| {
        let [one, two] = versions(cache);
        one.blocking().set("k", "bar", LONG).unwrap();
        assert!(one.blocking().exists("k").unwrap());
        assert!(!two.blocking().exists("k").unwrap());
        assert!(!cache.blocking().exists("k").unwrap());
        cache.blocking().set_raw("bytes", "bytes", LONG).unwrap();
        assert!(cache.blocking().exists("bytes").unwrap());
        assert!(!one.blocking().exists("bytes").unwrap(), "raw bytes have no version");
    });
}
