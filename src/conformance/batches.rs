use bytes::Bytes;

use super::keys::{LONG, fresh};
use crate::error::{ErrorKind, Result};
use crate::store::{CacheStore, When};

/// Results stand in the order of the keys, for repeated and missing keys too; of a repeated key, the last value stays.
pub async fn batches_answer_in_the_order_of_their_keys(store: &dyn CacheStore) {
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

    let doomed: Vec<&str> = keys.iter().flat_map(|key| [key.as_str(), key.as_str(), &missing]).collect();
    let deleted: Vec<bool> = store.delete_many(&doomed).await.into_iter().map(Result::unwrap).collect();
    let expected: Vec<bool> = keys.iter().flat_map(|_| [true, false, false]).collect();
    assert_eq!(deleted, expected, "the first of two deletes finds the entry");

    assert!(store.get_many(&[]).await.is_empty());
    assert!(store.set_many(&[], LONG).await.is_empty());
    assert!(store.delete_many(&[]).await.is_empty());
}

/// A key that is refused is refused alone.
pub async fn one_bad_key_spoils_no_batch(store: &dyn CacheStore) {
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
