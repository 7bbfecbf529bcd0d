//! Checks of operations on one entry.

use bytes::Bytes;

use super::keys::{LONG, fresh};
use crate::error::ErrorKind;
use crate::store::{CacheStore, Ttl, When};

/// [`get`](CacheStore::get) and [`get_latest`](CacheStore::get_latest) return the value that [`set`](CacheStore::set)
/// stored last, or `None` if there is none.
pub async fn get_returns_the_last_set(store: &dyn CacheStore) {
    let key = fresh("value");
    assert_eq!(store.get(&key).await.unwrap(), None, "before the first set");
    assert_eq!(store.get_latest(&key).await.unwrap(), None, "before the first set");
    for value in ["first", "second"] {
        assert!(store.set(&key, value.into(), LONG, When::Always).await.unwrap(), "an unconditional set stores");
        assert_eq!(store.get(&key).await.unwrap().as_deref(), Some(value.as_bytes()));
        assert_eq!(store.get_latest(&key).await.unwrap().as_deref(), Some(value.as_bytes()));
    }
    assert!(store.set(&key, "for ever".into(), Ttl::Never, When::Always).await.unwrap());
    assert_eq!(store.get(&key).await.unwrap().as_deref(), Some(&b"for ever"[..]));
    store.delete(&key).await.unwrap();
}

/// Values can be any bytes, up to 1,000,000 of them.
pub async fn empty_binary_and_large_values_are_returned_unchanged(store: &dyn CacheStore) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..1_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let values = [
        Vec::new(),
        b"\0".to_vec(),
        b"\r\nEND\r\n".to_vec(),
        b"$-1\r\n".to_vec(),
        b"HD\r\n".to_vec(),
        every_byte,
        large,
    ];
    for value in values {
        let key = fresh("bytes");
        let value = Bytes::from(value);
        assert!(store.set(&key, value.clone(), LONG, When::Always).await.unwrap());
        let read = store.get(&key).await.unwrap();
        assert!(
            read.as_ref() == Some(&value),
            "a value of {} bytes came back as {:?}",
            value.len(),
            read.map(|read| read.len())
        );
        store.delete(&key).await.unwrap();
    }
}

/// Keys can be any non-empty strings, and different keys are different entries.
pub async fn keys_with_special_characters_are_distinct(store: &dyn CacheStore) {
    let base = fresh("key");
    let long = "k".repeat(300);
    let longest_plain = "k".repeat(250_usize.saturating_sub(base.len()));
    let odd = [
        "",
        " ",
        "  ",
        "\t",
        "\r\n",
        "\0",
        "\x7f",
        "a b",
        "a\nb",
        "a\r\nset x 0 0 1\r\ny\r\n",
        "ä",
        "a\u{308}",
        "日本語",
        "🙂",
        "*",
        "?",
        "[a]",
        "\\",
        "{tag}",
        ":",
        "::",
        "/",
        "%20",
        "+",
        "\"",
        "'",
        "A",
        "a",
        &long,
        &longest_plain,
    ];
    let longer =
        [format!("{long}\u{e4}"), format!("{long} "), format!("{longest_plain}k"), "ä".repeat(200), " ".repeat(220)];
    let keys: Vec<String> =
        odd.into_iter().chain(longer.iter().map(String::as_str)).map(|odd| format!("{base}{odd}")).collect();
    for (number, key) in keys.iter().enumerate() {
        assert!(store.set(key, number.to_string().into(), LONG, When::IfAbsent).await.unwrap(), "{key:?} is a new key");
    }
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let batch = store.get_many(&names).await;
    for ((number, key), from_batch) in keys.iter().enumerate().zip(batch) {
        let expected = number.to_string();
        assert_eq!(store.get(key).await.unwrap().as_deref(), Some(expected.as_bytes()), "{key:?}");
        assert_eq!(from_batch.unwrap().as_deref(), Some(expected.as_bytes()), "{key:?} in a batch");
        assert!(store.delete(key).await.unwrap(), "{key:?} exists");
    }
}

/// Every operation refuses the empty key with [`ErrorKind::InvalidKey`].
pub async fn an_empty_key_is_refused(store: &dyn CacheStore) {
    let refusals = [
        ("get", store.get("").await.err()),
        ("set", store.set("", Bytes::new(), LONG, When::Always).await.err()),
        ("delete", store.delete("").await.err()),
        ("compare_and_set", store.compare_and_set("", None, None, LONG).await.err()),
        ("touch", store.touch("", LONG).await.err()),
        ("increment", store.increment("", 1, LONG).await.err()),
    ];
    for (verb, refusal) in refusals {
        assert_eq!(refusal.map(|error| error.kind()), Some(ErrorKind::InvalidKey), "{verb} of an empty key");
    }
}

/// [`When::IfAbsent`] stores only if there is no entry, [`When::IfPresent`] only if there is one.
pub async fn conditional_writes_check_for_an_entry(store: &dyn CacheStore) {
    let key = fresh("conditional");
    assert!(!store.set(&key, "a".into(), LONG, When::IfPresent).await.unwrap(), "there is nothing to replace");
    assert_eq!(store.get(&key).await.unwrap(), None);
    assert!(store.set(&key, "b".into(), LONG, When::IfAbsent).await.unwrap(), "there is no entry");
    assert!(!store.set(&key, "c".into(), LONG, When::IfAbsent).await.unwrap(), "there is an entry");
    assert_eq!(store.get(&key).await.unwrap().as_deref(), Some(&b"b"[..]));
    assert!(store.set(&key, "d".into(), LONG, When::IfPresent).await.unwrap(), "there is an entry");
    assert_eq!(store.get(&key).await.unwrap().as_deref(), Some(&b"d"[..]));
    store.delete(&key).await.unwrap();
}

/// [`delete`](CacheStore::delete) returns `true` once.
pub async fn a_delete_says_whether_there_was_an_entry(store: &dyn CacheStore) {
    let key = fresh("delete");
    assert!(!store.delete(&key).await.unwrap(), "there is no entry yet");
    store.set(&key, Bytes::new(), LONG, When::Always).await.unwrap();
    assert!(store.delete(&key).await.unwrap(), "an empty value is an entry");
    assert!(!store.delete(&key).await.unwrap(), "it is deleted");
    assert_eq!(store.get(&key).await.unwrap(), None);
}

/// [`compare_and_set`](CacheStore::compare_and_set) does nothing unless the entry has the expected value.
pub async fn compare_and_set_compares(store: &dyn CacheStore) {
    let key = fresh("swap");
    let value = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    assert!(!store.compare_and_set(&key, Some(b"a"), value("b"), LONG).await.unwrap(), "no entry is not \"a\"");
    assert!(store.compare_and_set(&key, None, None, LONG).await.unwrap(), "no entry before and after");
    assert!(store.compare_and_set(&key, None, value(""), LONG).await.unwrap(), "no entry, as expected");
    assert!(!store.compare_and_set(&key, None, value("b"), LONG).await.unwrap(), "an empty value is an entry");
    assert!(!store.compare_and_set(&key, Some(b"a"), value("b"), LONG).await.unwrap(), "\"\" is not \"a\"");
    assert!(store.compare_and_set(&key, Some(b""), value("b"), LONG).await.unwrap(), "\"\" as expected");
    assert_eq!(store.get(&key).await.unwrap(), value("b"));
    assert!(!store.compare_and_set(&key, Some(b"bb"), None, LONG).await.unwrap(), "\"b\" is not \"bb\"");
    assert!(store.compare_and_set(&key, Some(b"b"), None, LONG).await.unwrap(), "\"b\" as expected");
    assert_eq!(store.get(&key).await.unwrap(), None, "a new value of `None` removes the entry");
}

/// [`append`](CacheStore::append) appends bytes to an entry, or creates it.
pub async fn append_appends(store: &dyn CacheStore) {
    let key = fresh("append");
    for (appended, whole) in [(&b"a\0"[..], &b"a\0"[..]), (b"", b"a\0"), (b"\xFF\r\n", b"a\0\xFF\r\n")] {
        store.append(&key, Bytes::from_static(appended), LONG).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().as_deref(), Some(whole));
    }
    let appends = (0..20).map(|number: u8| store.append(&key, Bytes::from(vec![number]), LONG));
    for append in appends.collect::<Vec<_>>() {
        append.await.unwrap();
    }
    assert_eq!(store.get(&key).await.unwrap().map(|value| value.len()), Some(25));
    store.delete(&key).await.unwrap();
}
