//! What is written and cannot be read again: refused where it is written, or reported once. A value that comes back is
//! the one that was written, under the key that it was written under.

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

/// A cache in memory, and what it reports.
pub(crate) fn reporting(settings: impl FnOnce(Builder) -> Builder) -> (Cache, Reports) {
    let reports = Reports::default();
    let log = Arc::clone(&reports);
    let builder = settings(Cache::builder(MemoryStore::new()));
    (builder.on_error(move |error| log.lock().unwrap().push(error.clone())).build(), reports)
}

fn kinds(reports: &Reports) -> Vec<ErrorKind> {
    reports.lock().unwrap().iter().map(Error::kind).collect()
}

/// Serde's untagged enums do not read integers of 128 bits, whatever the format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Amount {
    Wei(u128),
    Named { name: String },
}

#[test]
fn a_load_that_cannot_be_read_back_is_an_encode_error() {
    for codec in [Codec::MessagePack, Codec::Json] {
        let (cache, reports) = reporting(|builder| builder.codec(codec));
        let load = || Ok::<_, Infallible>(Amount::Wei(7_000_000_000_000_000_000_000));
        for _ in 0..3 {
            assert_eq!(cache.blocking().fetch("secret", TTL, load), Ok(load().unwrap()));
        }
        assert!(!cache.blocking().exists("secret").unwrap(), "nothing is stored that is no value");
        assert_eq!(kinds(&reports)[0], ErrorKind::Encode);
        let told = format!("{:#}", reports.lock().unwrap()[0]);
        assert!(told.contains("Amount") && told.contains("\"secret\"") && !told.contains("7000"), "{told}");
        let change = |_: Option<Amount>| Some(load().unwrap());
        assert_eq!(cache.blocking().update("secret", TTL, change).unwrap_err().kind(), ErrorKind::Encode);
        let many = cache.blocking().fetch_many(&["a", "b"], TTL, |missing| missing.iter().map(|_| load()).collect());
        assert_eq!(many, [load(), load()]);
        let named = Amount::Named { name: "gold".to_owned() };
        assert_eq!(cache.blocking().fetch("named", TTL, || Ok::<_, Infallible>(named.clone())), Ok(named.clone()));
        assert_eq!(cache.blocking().get("named").unwrap(), Some(named), "other values of the type are kept");
    }
}

/// `set` knows how to write a type, and not how to read it.
#[test]
fn what_a_read_cannot_make_out_is_reported_once_for_each_type() {
    let (cache, reports) = reporting(|builder| builder.name("prices"));
    cache.blocking().set("secret", &Amount::Wei(7_000_000), TTL).unwrap();
    for _ in 0..3 {
        assert_eq!(cache.blocking().get::<Amount>("secret").unwrap(), None);
    }
    cache.blocking().set("text", "7000000", TTL).unwrap();
    assert_eq!(cache.blocking().get::<u64>("text").unwrap(), None);
    assert_eq!(kinds(&reports), [ErrorKind::Decode; 2]);
    let told = format!("{:#}", reports.lock().unwrap()[0]);
    assert!(told.contains("Amount") && told.contains("\"secret\"") && !told.contains("7000000"), "{told}");
    cache.blocking().set_raw("raw", "7", TTL).unwrap();
    assert_eq!(cache.blocking().get::<u64>("raw").unwrap(), None);
    assert_eq!(reports.lock().unwrap().len(), 2, "the bytes of other programs are no mistake");
    assert_eq!(cache.stats().undecodable, 5);
}

fn kept<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(cache: &Cache, value: T) {
    cache.blocking().set("k", &value, TTL).unwrap();
    assert_eq!(cache.blocking().get("k").unwrap(), Some(value));
}

fn refused<T: Serialize + DeserializeOwned>(cache: &Cache, value: T) {
    let what = std::any::type_name::<T>();
    cache.blocking().delete("k").unwrap();
    let error = cache.blocking().set("k", &value, TTL).expect_err(what);
    assert_eq!(error.kind(), ErrorKind::Encode, "{what}");
    assert!(!cache.blocking().exists("k").unwrap(), "{what}");
    assert_eq!(cache.blocking().add("k", &value, TTL).expect_err(what).kind(), ErrorKind::Encode);
    let many = cache.blocking().set_many(&[("k", value)], TTL);
    assert_eq!(many[0].as_ref().expect_err(what).kind(), ErrorKind::Encode);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Tree {
    Leaf,
    Under(Box<Tree>),
}

#[test]
fn what_would_come_back_as_another_value_is_refused() {
    for codec in [Codec::MessagePack, Codec::Json] {
        let cache = Cache::builder(MemoryStore::new()).codec(codec).build();
        kept(&cache, Some(Some(1)));
        kept(&cache, None::<Option<u8>>);
        kept(&cache, vec![None, Some(1)]);
        kept(&cache, ((), Some(Unit).map(|_| 1)));
        kept(&cache, u128::MAX);
        kept(&cache, i128::MIN);
        refused(&cache, Some(None::<u8>));
        refused(&cache, vec![(1, Some(Some(None::<u8>)))]);
        refused(&cache, Some(()));
        let deep = (0..200).fold(Tree::Leaf, |inner, _| Tree::Under(Box::new(inner)));
        refused(&cache, deep);
    }
    let json = Cache::builder(MemoryStore::new()).codec(Codec::Json).build();
    refused(&json, Some(Unit));
    refused(&json, f64::NAN);
    refused(&json, vec![Some(f32::INFINITY)]);
    let packed = Cache::builder(MemoryStore::new()).build();
    kept(&packed, Some(Unit));
    kept(&packed, f64::INFINITY);
}

/// A handle's own bound on what it inflates is not exceeded by what it writes.
#[test]
fn what_would_inflate_to_more_than_its_reader_takes_is_not_compressed() {
    let cache = Cache::builder(MemoryStore::new()).compress_above(1_000).max_inflated(10_000).build();
    for length in [500, 5_000, 50_000] {
        kept(&cache, "x".repeat(length));
    }
}

/// Another entry's bytes, as a proxy or a careless copy puts them there.
#[test]
fn a_value_of_another_key_does_not_open() {
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
