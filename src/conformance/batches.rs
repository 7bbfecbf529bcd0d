//! Checks of batches.

use bytes::Bytes;

use super::keys::{LONG, fresh};
use crate::error::{ErrorKind, Result};
use crate::store::{CacheStore, Op, Outcome, Replacement, Settle, Ttl, When, lease_key};

/// Results are in the order of the keys, for repeated and missing keys too. Of a repeated key, the last value is
/// stored.
pub async fn batch_results_are_in_key_order(store: &dyn CacheStore) {
    let keys: Vec<String> = (0..100).map(|number| fresh(&format!("batch-{number}"))).collect();
    let entries: Vec<(&str, Bytes)> = keys.iter().map(|key| (key.as_str(), Bytes::from(key.clone()))).collect();
    let again = entries.iter().take(1).map(|(key, _)| (*key, Bytes::from_static(b"again")));
    let entries: Vec<(&str, Bytes)> = entries.iter().cloned().chain(again).collect();
    let stored = store.set_many(&entries, LONG).await;
    assert_eq!(stored.len(), entries.len());
    stored.into_iter().for_each(Result::unwrap);

    let missing = fresh("missing");
    let asked: Vec<&str> = keys.iter().rev().flat_map(|key| [key.as_str(), &missing, key.as_str()]).collect();
    let found = store.get_many(&asked).await;
    assert_eq!(found.len(), asked.len());
    for (key, found) in asked.iter().zip(found) {
        let expected = match *key {
            key if key == missing => None,
            key if key == keys[0] => Some("again"),
            key => Some(key),
        };
        assert_eq!(found.unwrap().as_deref(), expected.map(str::as_bytes), "{key}");
    }

    let twice: Vec<&str> = keys.iter().flat_map(|key| [key.as_str(), key.as_str(), &missing]).collect();
    let deleted: Vec<bool> = store.delete_many(&twice).await.into_iter().map(Result::unwrap).collect();
    let expected: Vec<bool> = keys.iter().flat_map(|_| [true, false, false]).collect();
    assert_eq!(deleted, expected, "the first of two deletes finds the entry");

    assert!(store.get_many(&[]).await.is_empty());
    assert!(store.set_many(&[], LONG).await.is_empty());
    assert!(store.delete_many(&[]).await.is_empty());
}

/// A refused key does not affect the other keys of a batch.
pub async fn an_invalid_key_fails_alone(store: &dyn CacheStore) {
    let [first, last] = ["first", "last"].map(fresh);
    let kinds = |results: Vec<Option<ErrorKind>>| assert_eq!(results, [None, Some(ErrorKind::InvalidKey), None]);
    let kind = |error: crate::error::Error| error.kind();

    let entries = [(&*first, Bytes::from_static(b"1")), ("", Bytes::new()), (&*last, Bytes::from_static(b"2"))];
    kinds(store.set_many(&entries, LONG).await.into_iter().map(|result| result.err().map(kind)).collect());
    let keys = [&*first, "", &*last];
    kinds(store.get_many(&keys).await.into_iter().map(|result| result.err().map(kind)).collect());
    assert_eq!(store.get(&last).await.unwrap().as_deref(), Some(&b"2"[..]));
    kinds(store.delete_many(&keys).await.into_iter().map(|result| result.err().map(kind)).collect());
    assert!(store.set(&first, Bytes::new(), LONG, When::IfAbsent).await.unwrap(), "it was deleted");
    store.delete(&first).await.unwrap();
}

async fn outcomes(store: &dyn CacheStore, operations: &[Op<'_>]) -> Vec<Outcome> {
    let outcomes = store.batch(operations).await;
    assert_eq!(outcomes.len(), operations.len());
    outcomes.into_iter().map(Result::unwrap).collect()
}

fn value(text: &'static str) -> Outcome {
    Outcome::Value(Some(Bytes::from_static(text.as_bytes())))
}

/// Operations on one key take effect in their order. Conditions apply to the result of the operation before.
pub async fn a_batch_keeps_the_order_on_a_key(store: &dyn CacheStore) {
    let [key, other] = ["ordered", "ordered-too"].map(fresh);
    let (key, other) = (&*key, &*other);
    let set = |value: &'static str, when| Op::Set { key, value: value.into(), ttl: LONG, when };
    let swap = |expected: Option<&'static [u8]>, new: Option<&'static str>| Op::CompareAndSet {
        key,
        expected,
        new: new.map(Bytes::from),
        ttl: LONG,
    };
    let (get, delete) = (Op::Get { key }, Op::Delete { key });
    let elsewhere = Op::Set { key: other, value: "x".into(), ttl: LONG, when: When::Always };
    let (yes, no, nothing) = (Outcome::Done(true), Outcome::Done(false), Outcome::Value(None));
    let steps = [
        (get.clone(), nothing.clone()),
        (set("1", When::IfPresent), no.clone()),
        (set("1", When::IfAbsent), yes.clone()),
        (set("2", When::IfAbsent), no.clone()),
        (elsewhere, yes.clone()),
        (get.clone(), value("1")),
        (swap(Some(b"2"), Some("3")), no.clone()),
        (swap(Some(b"1"), Some("3")), yes.clone()),
        (get.clone(), value("3")),
        (swap(None, Some("4")), no.clone()),
        (swap(Some(b"3"), None), yes.clone()),
        (get.clone(), nothing.clone()),
        (swap(None, None), yes.clone()),
        (swap(None, Some("5")), yes.clone()),
        (set("6", When::IfPresent), yes.clone()),
        (get.clone(), value("6")),
        (delete.clone(), yes.clone()),
        (delete, no.clone()),
        (get, nothing),
    ];
    let (operations, expected): (Vec<Op<'_>>, Vec<Outcome>) = steps.into_iter().unzip();
    assert_eq!(outcomes(store, &operations).await, expected);
    store.delete(other).await.unwrap();
}

/// An invalid operation does not affect the other operations of a batch.
pub async fn an_invalid_operation_fails_alone(store: &dyn CacheStore) {
    let key = fresh("among-bad-ones");
    let set = |key, ttl| Op::Set { key, value: "1".into(), ttl, when: When::Always };
    let operations = [
        Op::Get { key: "" },
        set(&key, LONG),
        set(&key, Ttl::After(std::time::Duration::ZERO)),
        Op::CompareAndSet { key: "", expected: None, new: None, ttl: LONG },
        Op::Get { key: &key },
        Op::Delete { key: &key },
    ];
    let kinds: Vec<Option<ErrorKind>> =
        store.batch(&operations).await.into_iter().map(|outcome| outcome.err().map(|error| error.kind())).collect();
    let (bad_key, bad_ttl) = (Some(ErrorKind::InvalidKey), Some(ErrorKind::InvalidTtl));
    assert_eq!(kinds, [bad_key, None, bad_ttl, bad_key, None, None]);
    assert!(store.batch(&[]).await.is_empty());
}

/// A settle stores the value and ends the lease if the token is the holder's and the entry has not changed, and
/// otherwise does not store.
pub async fn a_settle_stores_under_its_own_lease_only(store: &dyn CacheStore) {
    let key = fresh("settled");
    let (key, lease) = (&*key, &*lease_key(&key));
    let loaded = Bytes::from_static(b"loaded");
    let replacement = |seen| Some(Replacement { seen, value: &loaded, ttl: LONG });
    let settle = |token, store, mark| Op::Settle(Settle { key, lease, token, store, mark });
    let take = |new: &'static str| Op::Set { key: lease, value: new.into(), ttl: LONG, when: When::Always };
    let settled = |was_held, is_stored| Outcome::Settled { was_held, is_stored };
    let (get, look) = (Op::Get { key }, Op::Get { key: lease });
    let (nothing, done) = (Outcome::Value(None), Outcome::Done(true));
    let steps = [
        (settle(b"mine", replacement(None), None), settled(false, false)),
        (take("theirs"), done.clone()),
        (settle(b"mine", replacement(None), None), settled(false, false)),
        (look.clone(), value("theirs")),
        (get.clone(), nothing.clone()),
        (take("mine, in the second beat"), done.clone()),
        (settle(b"mine", replacement(None), None), settled(true, true)),
        (look.clone(), nothing.clone()),
        (get.clone(), value("loaded")),
        (take("mine"), done.clone()),
        (settle(b"mine", replacement(Some(b"another")), Some((b"mark", LONG))), settled(true, false)),
        (look.clone(), value("mark")),
        (take("mine"), done),
        (settle(b"mine", replacement(Some(b"loaded")), None), settled(true, true)),
        (look, nothing),
        (get, value("loaded")),
    ];
    let (operations, expected): (Vec<Op<'_>>, Vec<Outcome>) = steps.into_iter().unzip();
    assert_eq!(outcomes(store, &operations).await, expected);
    store.delete(key).await.unwrap();
}
