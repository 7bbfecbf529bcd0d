//! Values that cannot be read back: refused when they are written, or reported once. A value that is read is the one
//! that was written under its key.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prefork_cache::stores::MemoryStore;
use prefork_cache::{Builder, Cache, Codec, Error, ErrorKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cache::everywhere;

const TTL: Duration = Duration::from_secs(600);

pub(crate) type Reports = Arc<Mutex<Vec<Error>>>;

/// A cache in memory, and the errors that it reports.
pub(crate) fn reporting(settings: impl FnOnce(Builder) -> Builder) -> (Cache, Reports) {
    let reports = Reports::default();
    let log = Arc::clone(&reports);
    let builder = settings(Cache::builder(MemoryStore::new()));
    (builder.on_error(move |error| log.lock().unwrap().push(error.clone())).build(), reports)
}

fn kinds(reports: &Reports) -> Vec<ErrorKind> {
    reports.lock().unwrap().iter().map(Error::kind).collect()
}

/// Serde's untagged enums do not read 128-bit integers, in any format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Amount {
    Wei(u128),
    Named { name: String },
}

#[test]
fn a_loaded_value_that_cannot_be_read_back_is_an_encode_error() {
    for codec in [Codec::MessagePack, Codec::Json] {
        let (cache, reports) = reporting(|builder| builder.codec(codec));
        let load = || Ok::<_, Infallible>(Amount::Wei(7_000_000_000_000_000_000_000));
        for _ in 0..3 {
            assert_eq!(cache.blocking().fetch("secret", TTL, load), Ok(load().unwrap()));
        }
        assert!(!cache.blocking().exists("secret").unwrap(), "an unreadable value is not stored");
        assert_eq!(kinds(&reports)[0], ErrorKind::Encode);
        let text = format!("{:#}", reports.lock().unwrap()[0]);
        assert!(text.contains("Amount") && text.contains("\"secret\"") && !text.contains("7000"), "{text}");
        let change = |_: Option<Amount>| Some(load().unwrap());
        assert_eq!(cache.blocking().update("secret", TTL, change).unwrap_err().kind(), ErrorKind::Encode);
        let many = cache.blocking().fetch_many(&["a", "b"], TTL, |missing| missing.iter().map(|_| load()).collect());
        assert_eq!(many, [load(), load()]);
        let named = Amount::Named { name: "gold".to_owned() };
        assert_eq!(cache.blocking().fetch("named", TTL, || Ok::<_, Infallible>(named.clone())), Ok(named.clone()));
        assert_eq!(cache.blocking().get("named").unwrap(), Some(named), "other values of the type are kept");
    }
}

/// `set` requires only that a type can be serialized.
#[test]
fn an_unreadable_value_is_reported_once_for_each_type() {
    let (cache, reports) = reporting(|builder| builder.name("prices"));
    cache.blocking().set("secret", &Amount::Wei(7_000_000), TTL).unwrap();
    for _ in 0..3 {
        assert_eq!(cache.blocking().get::<Amount>("secret").unwrap(), None);
    }
    cache.blocking().set("text", "7000000", TTL).unwrap();
    assert_eq!(cache.blocking().get::<u64>("text").unwrap(), None);
    assert_eq!(kinds(&reports), [ErrorKind::Decode; 2]);
    let text = format!("{:#}", reports.lock().unwrap()[0]);
    assert!(text.contains("Amount") && text.contains("\"secret\"") && !text.contains("7000000"), "{text}");
    cache.blocking().set_raw("raw", "7", TTL).unwrap();
    assert_eq!(cache.blocking().get::<u64>("raw").unwrap(), None);
    assert_eq!(reports.lock().unwrap().len(), 2, "raw bytes of other programs are not reported");
    assert_eq!(cache.stats().undecodable, 5);
}

fn assert_kept<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(cache: &Cache, value: T) {
    cache.blocking().set("k", &value, TTL).unwrap();
    assert_eq!(cache.blocking().get("k").unwrap(), Some(value));
}

fn assert_refused<T: Serialize + DeserializeOwned>(cache: &Cache, value: T) {
    let type_name = std::any::type_name::<T>();
    cache.blocking().delete("k").unwrap();
    let error = cache.blocking().set("k", &value, TTL).expect_err(type_name);
    assert_eq!(error.kind(), ErrorKind::Encode, "{type_name}");
    assert!(!cache.blocking().exists("k").unwrap(), "{type_name}");
    assert_eq!(cache.blocking().add("k", &value, TTL).expect_err(type_name).kind(), ErrorKind::Encode);
    let many = cache.blocking().set_many(&[("k", value)], TTL);
    assert_eq!(many[0].as_ref().expect_err(type_name).kind(), ErrorKind::Encode);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Tree {
    Leaf,
    Under(Box<Tree>),
}

#[test]
fn a_value_that_would_be_read_as_another_is_refused() {
    for codec in [Codec::MessagePack, Codec::Json] {
        let cache = Cache::builder(MemoryStore::new()).codec(codec).build();
        assert_kept(&cache, Some(Some(1)));
        assert_kept(&cache, None::<Option<u8>>);
        assert_kept(&cache, vec![None, Some(1)]);
        assert_kept(&cache, ((), Some(Unit).map(|_| 1)));
        assert_kept(&cache, u128::MAX);
        assert_kept(&cache, i128::MIN);
        assert_refused(&cache, Some(None::<u8>));
        assert_refused(&cache, vec![(1, Some(Some(None::<u8>)))]);
        assert_refused(&cache, Some(()));
        let deep = (0..200).fold(Tree::Leaf, |inner, _| Tree::Under(Box::new(inner)));
        assert_refused(&cache, deep);
    }
    let json = Cache::builder(MemoryStore::new()).codec(Codec::Json).build();
    assert_refused(&json, Some(Unit));
    assert_refused(&json, f64::NAN);
    assert_refused(&json, vec![Some(f32::INFINITY)]);
    let packed = Cache::builder(MemoryStore::new()).build();
    assert_kept(&packed, Some(Unit));
    assert_kept(&packed, f64::INFINITY);
}

/// A handle writes nothing that exceeds its own `max_inflated`.
#[test]
fn a_value_above_max_inflated_is_not_compressed() {
    let cache = Cache::builder(MemoryStore::new()).compress_above(1_000).max_inflated(10_000).build();
    for length in [500, 5_000, 50_000] {
        assert_kept(&cache, "x".repeat(length));
    }
}

/// The bytes of another entry, copied by a proxy or by mistake.
#[test]
fn a_value_of_another_key_is_a_miss() {
    everywhere(|cache| {
        let cache = cache.namespace("shop");
        cache.blocking().set("theirs", &7, TTL).unwrap();
        let foreign = cache.blocking().get_raw("theirs").unwrap().unwrap();
        cache.blocking().set_raw("ours", foreign.clone(), TTL).unwrap();
        assert_eq!(cache.blocking().get::<u8>("ours").unwrap(), None);
        assert_eq!(cache.blocking().get_many::<u8>(&["ours", "theirs"])[0].as_ref().unwrap(), &None);
        assert_eq!(cache.blocking().take::<u8>("ours").unwrap(), None);
        cache.namespace("sub").blocking().set_raw("theirs", foreign.clone(), TTL).unwrap();
        assert_eq!(cache.namespace("sub").blocking().get::<u8>("theirs").unwrap(), None, "nor in another namespace");
        assert_eq!(cache.blocking().fetch("ours", TTL, || Ok::<_, Infallible>(1)), Ok(1));
        assert_eq!(cache.blocking().get::<u8>("ours").unwrap(), Some(1), "the next fetch overwrites it");
    });
}

#[test]
fn a_value_of_another_key_is_reported() {
    let (cache, reports) = reporting(|builder| builder);
    cache.blocking().set("theirs", &7, TTL).unwrap();
    let foreign = cache.blocking().get_raw("theirs").unwrap().unwrap();
    cache.blocking().set_raw("ours", foreign, TTL).unwrap();
    for _ in 0..2 {
        assert_eq!(cache.blocking().get::<u8>("ours").unwrap(), None);
    }
    assert_eq!(kinds(&reports), [ErrorKind::Decode]);
    assert!(reports.lock().unwrap()[0].to_string().contains("written under another key"));
}
