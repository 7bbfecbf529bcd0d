//! Values that are byte strings, as the bindings store them.

use std::time::Duration;

use bytes::Bytes;
use prefork_cache::stores::MemoryStore;
use prefork_cache::{Cache, Clock, Expiry, When};
use serde::{Deserialize, Serialize};

use crate::cache::everywhere;
use crate::staleness::{HOUR, STALE_FOR_AN_HOUR};

/// Bytes, read and written like `serde_bytes` does.
#[derive(Debug, PartialEq, Eq)]
struct ByteBuf(Vec<u8>);

impl Serialize for ByteBuf {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for ByteBuf {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ByteBuf, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteBuf;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<ByteBuf, E> {
                Ok(ByteBuf(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

fn set(cache: &Cache, key: &str, value: impl Into<Bytes>, expiry: impl Into<Expiry>) {
    assert!(cache.blocking().run(cache.octets().set(key, value, expiry, When::Always)).unwrap());
}

fn get(cache: &Cache, key: &str) -> Option<Bytes> {
    cache.blocking().run(cache.octets().get(key)).unwrap()
}

#[test]
fn bytes_get_an_envelope_only_if_they_need_its_times() {
    everywhere(|cache| {
        for value in [&b""[..], b"plain", &[0xFF; 70_000]] {
            set(&cache, "plain", value, HOUR);
            assert_eq!(cache.blocking().get_raw("plain").unwrap().as_deref(), Some(value));
            assert_eq!(get(&cache, "plain").as_deref(), Some(value));
            set(&cache, "timed", value, STALE_FOR_AN_HOUR);
            assert_ne!(cache.blocking().get_raw("timed").unwrap().as_deref(), Some(value));
            assert_eq!(get(&cache, "timed").as_deref(), Some(value));
            assert_eq!(cache.blocking().get::<ByteBuf>("timed").unwrap(), Some(ByteBuf(value.to_vec())));
        }
        let many = cache.blocking().run(cache.octets().get_many(&["timed", "none", "plain"]));
        let many: Vec<Option<usize>> = many.into_iter().map(|value| value.unwrap().map(|value| value.len())).collect();
        assert_eq!(many, [Some(70_000), None, Some(70_000)]);
    });
}

/// A caller that controls a value must not control its times, nor make it read as another value.
#[test]
fn bytes_that_look_like_an_envelope_are_read_back_unchanged() {
    everywhere(|cache| {
        set(&cache, "k", "inner", STALE_FOR_AN_HOUR);
        let forged = cache.blocking().get_raw("k").unwrap().unwrap();
        for value in [forged, Bytes::from_static(b"\xC1PF"), Bytes::from_static(b"\xC1PF\x01 and more")] {
            set(&cache, "k", value.clone(), HOUR);
            assert_eq!(get(&cache, "k"), Some(value.clone()));
            let begun = cache.blocking().run(cache.octets().fetch_begin("k"));
            assert_eq!(begun.unwrap(), (value.clone(), false));
            cache.blocking().delete("k").unwrap();
            let claim = cache.blocking().run(cache.octets().fetch_begin("k")).unwrap_err();
            claim.blocking_complete(value.clone(), HOUR);
            assert_eq!(get(&cache, "k"), Some(value));
        }
    });
}

#[test]
fn typed_byte_strings_and_strings_are_read() {
    everywhere(|cache| {
        cache.blocking().set("text", "gr\u{FC}\u{DF}e", HOUR).unwrap();
        assert_eq!(get(&cache, "text").unwrap(), "gr\u{FC}\u{DF}e");
        cache.blocking().set("bytes", &ByteBuf(vec![0, 255, 7]), HOUR).unwrap();
        assert_eq!(get(&cache, "bytes").as_deref(), Some(&[0, 255, 7][..]));
        cache.blocking().set("number", &7, HOUR).unwrap();
        assert_eq!(get(&cache, "number"), None);
        assert_eq!(cache.stats().undecodable, 1);
        cache.blocking().increment("counter", 7, HOUR).unwrap();
        assert_eq!(get(&cache, "counter").unwrap(), "7");
    });
}

#[test]
fn a_value_written_under_another_key_is_a_miss() {
    everywhere(|cache| {
        set(&cache, "k", "v", STALE_FOR_AN_HOUR);
        let moved = cache.blocking().get_raw("k").unwrap().unwrap();
        cache.blocking().set_raw("other", moved, HOUR).unwrap();
        assert_eq!(get(&cache, "other"), None);
    });
}

#[test]
fn a_stale_value_is_marked_as_stale() {
    let clock = Clock::manual();
    let cache = Cache::builder(MemoryStore::new()).clock(clock.clone()).build();
    let minute = Duration::from_secs(60);
    let begin = || cache.blocking().run(cache.octets().fetch_begin("k"));
    begin().unwrap_err().blocking_complete("old".into(), Expiry::after(minute).stale_for(HOUR));
    assert_eq!(begin().unwrap(), ("old".into(), false));
    clock.advance(minute);
    let claim = begin().unwrap_err();
    assert_eq!(claim.old().unwrap(), "old");
    assert_eq!(begin().unwrap(), ("old".into(), true));
    assert_eq!(claim.blocking_fail().unwrap(), "old");
    assert_eq!(begin().unwrap(), ("old".into(), true), "the next load is put off");
    clock.advance(2 * HOUR);
    assert_eq!(get(&cache, "k"), None);
}
