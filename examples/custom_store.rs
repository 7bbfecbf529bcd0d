//! A custom store, tested with the conformance suite: `cargo run --example custom_store --features conformance`.

use std::collections::BTreeMap;
use std::ops::Bound::{Included, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use prefork_cache::lifecycle::ProcessLocal;
use prefork_cache::{Cache, CacheStore, Error, ErrorKind, Result, Ttl, When, conformance};

fn main() -> Result<()> {
    let shelf = Arc::new(Shelf::default());
    for check in conformance::CHECKS {
        check.run_inline(&shelf);
        println!("passed: {}", check.name());
    }

    let cache = Cache::builder(shelf).namespace("greetings").build();
    let load = || Ok::<_, Error>("loaded once, and stored on a shelf".to_owned());
    let motd = cache.blocking().fetch("motd", Duration::from_secs(60), load)?;
    assert_eq!(cache.blocking().get::<String>("motd")?, Some(motd.clone()));
    println!("{motd}");
    Ok(())
}

/// A store in the memory of a process, ordered by key.
///
/// A forked child starts with an empty shelf: the lock of its parent's shelf may be held by a thread that does not
/// exist in the child.
#[derive(Debug, Default)]
struct Shelf {
    entries: ProcessLocal<Mutex<BTreeMap<String, Entry>>>,
}

#[derive(Clone, Debug)]
struct Entry {
    value: Bytes,
    expires_at: Option<Instant>,
}

/// The most entries. A full shelf removes its expired entries, and then the first key.
const MOST_ENTRIES: usize = 10_000;

impl Entry {
    fn new(value: Bytes, ttl: Ttl) -> Result<Entry> {
        Ok(Entry { value, expires_at: ttl.duration()?.map(|duration| Instant::now() + duration) })
    }

    fn is_fresh(&self) -> bool {
        self.expires_at.is_none_or(|expires_at| Instant::now() < expires_at)
    }
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.get_or_init(Mutex::default).lock().expect("no code that holds the lock panics")
    }

    /// Replaces the entry under a key by the result of `decide`, atomically.
    fn change<R>(&self, key: &str, decide: impl FnOnce(Option<Entry>) -> (Option<Entry>, R)) -> Result<R> {
        check_key(key)?;
        let mut entries = self.lock();
        let (entry, result) = decide(entries.remove(key).filter(Entry::is_fresh));
        if let Some(entry) = entry {
            if entries.len() >= MOST_ENTRIES {
                entries.retain(|_, entry| entry.is_fresh());
            }
            if entries.len() >= MOST_ENTRIES {
                entries.pop_first();
            }
            entries.insert(key.to_owned(), entry);
        }
        Ok(result)
    }
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() { Err(Error::new(ErrorKind::InvalidKey, "the key is empty")) } else { Ok(()) }
}

#[async_trait]
impl CacheStore for Shelf {
    fn name(&self) -> &str {
        "shelf"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        check_key(key)?;
        Ok(self.lock().get(key).filter(|entry| entry.is_fresh()).map(|entry| entry.value.clone()))
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        let new = Entry::new(value, ttl)?;
        self.change(key, |entry| match (when, &entry) {
            (When::IfAbsent, Some(_)) | (When::IfPresent, None) => (entry, false),
            _ => (Some(new), true),
        })
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        self.change(key, |entry| (None, entry.is_some()))
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        let new = new.map(|value| Entry::new(value, ttl)).transpose()?;
        self.change(key, |entry| match entry.as_ref().map(|entry| &*entry.value) == expected {
            true => (new, true),
            false => (entry, false),
        })
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        let mut entries = self.lock();
        let from_prefix = entries.range::<str, _>((Included(prefix), Unbounded));
        let keys: Vec<_> = from_prefix.map(|(key, _)| key.clone()).take_while(|key| key.starts_with(prefix)).collect();
        entries.retain(|key, _| keys.binary_search(key).is_err());
        Ok(())
    }

    /// Does nothing: there are no connections.
    fn reset(&self) {}

    async fn reconnect(&self) -> Result<()> {
        Ok(())
    }

    fn is_shared(&self) -> bool {
        false
    }

    /// The provided method would set a new time to live on an existing counter.
    async fn increment(&self, key: &str, by: i64, ttl: Ttl) -> Result<i64> {
        let missing = Entry::new("0".into(), ttl)?;
        self.change(key, |entry| {
            let counter = entry.as_ref().unwrap_or(&missing);
            let number = std::str::from_utf8(&counter.value).ok().and_then(|text| text.parse::<i64>().ok());
            match number.and_then(|number| number.checked_add(by)) {
                Some(sum) => (Some(Entry { value: sum.to_string().into(), ..counter.clone() }), Ok(sum)),
                None => {
                    let context = format!("{key:?} is not a number, or {by:+} overflows it");
                    (entry, Err(Error::new(ErrorKind::NotANumber, context)))
                }
            }
        })?
    }
}
