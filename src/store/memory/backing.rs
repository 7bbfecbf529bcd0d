//! Where the entries are: in moka, or in the stand-in for it. One interface to both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::ops::compute::Op;

use super::Bound;
use super::cold::Cold;
use crate::lifecycle::gate;

/// What an entry takes beside its key and value, roughly.
const OVERHEAD: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) value: Bytes,
    pub(super) expires_at: Option<Instant>,
}

impl Entry {
    /// In bytes.
    pub(super) fn weight(&self, key: &str) -> u32 {
        u32::try_from(key.len() + self.value.len() + OVERHEAD).unwrap_or(u32::MAX)
    }

    pub(super) fn is_live(&self) -> bool {
        self.expires_at.is_none_or(|expires_at| Instant::now() < expires_at)
    }
}

/// What is to become of an entry.
pub(super) enum Change {
    Keep,
    Put(Entry),
    Remove,
}

#[derive(Clone, Debug)]
pub(super) enum Backing {
    Moka(moka::sync::Cache<String, Entry, foldhash::quality::RandomState>),
    Cold(Arc<Cold>),
}

impl Backing {
    pub(super) fn moka(bound: Bound) -> Backing {
        let builder = moka::sync::Cache::builder().expire_after(PerEntry);
        let builder = match bound {
            Bound::Bytes(bytes) => builder.max_capacity(bytes).weigher(|key: &String, entry: &Entry| entry.weight(key)),
            Bound::Entries(entries) => builder.max_capacity(entries),
        };
        Backing::Moka(builder.build_with_hasher(foldhash::quality::RandomState::default()))
    }

    pub(super) fn cold(bound: Bound) -> Backing {
        Backing::Cold(Arc::new(Cold::new(bound)))
    }

    /// Inside the gate.
    #[inline]
    pub(super) fn get(&self, key: &str) -> Option<Bytes> {
        match self {
            Backing::Moka(moka) => moka.get(key).map(|entry| entry.value),
            Backing::Cold(cold) => cold.get(key),
        }
    }

    /// Inside the gate, and under the lock of the entry.
    pub(super) fn change<R>(&self, key: &str, decide: impl FnOnce(Option<&Entry>) -> (Change, R)) -> R {
        let moka = match self {
            Backing::Cold(cold) => return cold.change(key, decide),
            Backing::Moka(moka) => moka,
        };
        let mut answer = None;
        moka.entry_by_ref(key).and_compute_with(|current| {
            let (change, said) = decide(current.as_ref().map(|current| current.value()));
            answer = Some(said);
            match change {
                Change::Keep => Op::Nop,
                Change::Put(entry) => Op::Put(entry),
                Change::Remove => Op::Remove,
            }
        });
        answer.expect("moka calls what it is given once")
    }

    /// Removes the entries whose keys start with `prefix`. Outside of the gate, which is entered for one entry at a time.
    pub(super) fn clear(&self, prefix: &str) {
        match self {
            Backing::Cold(cold) => cold.clear(prefix),
            Backing::Moka(moka) => {
                let mut entries = moka.iter();
                loop {
                    let _pass = gate::enter();
                    let Some((key, _)) = entries.next() else { return };
                    if key.starts_with(prefix) {
                        moka.invalidate(&**key);
                    }
                }
            }
        }
    }
}

/// Each entry's own time to live, in moka's terms.
struct PerEntry;

impl PerEntry {
    fn time_left(entry: &Entry, now: Instant) -> Option<Duration> {
        entry.expires_at.map(|expires_at| expires_at.saturating_duration_since(now))
    }
}

impl moka::Expiry<String, Entry> for PerEntry {
    fn expire_after_create(&self, _: &String, entry: &Entry, created_at: Instant) -> Option<Duration> {
        PerEntry::time_left(entry, created_at)
    }

    fn expire_after_update(&self, _: &String, entry: &Entry, now: Instant, _: Option<Duration>) -> Option<Duration> {
        PerEntry::time_left(entry, now)
    }
}
