//! Entries in a table that is never written, for children to read without copying it.
//!
//! A read in moka writes: reference counts, a log of reads, an order of use. In a forked child each such write copies a
//! page. What is frozen is in one leaked `Vec<u8>`, found by an index of `u32`; a hit writes nothing there.
//!
//! # What was written since
//!
//! Beside the table there is a bit for each entry, which each process copies for itself: whether the entry was written,
//! deleted, cleared or has expired since. From then on the live layer has the say. The bit is set once and stays, so an
//! old value never comes back, whatever is evicted. An entry is *lifted* into the live layer before anything is changed
//! in it, and only then is its bit set: a reader in between finds the same value in either place, and so does a child
//! that was forked in between. Whatever else such a child cannot trust, what is frozen and not marked is what its parent
//! had.
//!
//! Freezing goes the other way, entry by entry, under the lock of the entry: a new table begins with all of its bits set,
//! and a bit is cleared, this one time, while the live layer still holds the very entry that was copied. A reader that
//! looked too early here and too late there looks here again.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::quality::RandomState;

use super::entry::Entry;

/// How many tables there are at most: none is ever freed.
const MOST: usize = 4;

/// The end of an entry that has none.
const NEVER: u64 = u64::MAX;

const WORD: usize = 64;

#[derive(Debug)]
pub(super) struct Table {
    /// The keys and values.
    bytes: &'static [u8],
    records: Vec<Record>,
    /// The number of a record, and one more, at or behind the place of its key's hash; 0 ends the search.
    index: Vec<u32>,
    hasher: RandomState,
    written: Vec<AtomicU64>,
    unwritten: AtomicUsize,
    begun: Instant,
    /// What was frozen before.
    older: Option<&'static Table>,
}

#[derive(Debug)]
struct Record {
    at: usize,
    key_length: u32,
    value_length: u32,
    /// In nanoseconds since the table was begun.
    expires_at: u64,
}

/// An entry that is frozen and was not written since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frozen {
    table: &'static Table,
    number: usize,
}

impl Table {
    /// A table of these entries, all marked as written.
    pub(super) fn new(entries: &[(Arc<String>, Arc<Entry>)], older: Option<&'static Table>) -> &'static Table {
        let (begun, hasher) = (Instant::now(), RandomState::default());
        let mut bytes = Vec::with_capacity(entries.iter().map(|(key, entry)| key.len() + entry.value.len()).sum());
        let mut records = Vec::with_capacity(entries.len());
        let mut index = vec![0; (entries.len() * 3 / 2 + 1).next_power_of_two()];
        for (key, entry) in entries {
            let (Ok(key_length), Ok(value_length), Ok(number)) =
                (u32::try_from(key.len()), u32::try_from(entry.value.len()), u32::try_from(records.len() + 1))
            else {
                continue;
            };
            let expires_at = entry.expires_at.map_or(NEVER, |at| nanoseconds(at.saturating_duration_since(begun)));
            records.push(Record { at: bytes.len(), key_length, value_length, expires_at });
            bytes.extend_from_slice(key.as_bytes());
            bytes.extend_from_slice(&entry.value);
            let mut place = hasher.hash_one(key.as_bytes()) as usize & (index.len() - 1);
            while index[place] != 0 {
                place = (place + 1) & (index.len() - 1);
            }
            index[place] = number;
        }
        let written = (0..records.len().div_ceil(WORD)).map(|_| AtomicU64::new(u64::MAX)).collect();
        let (bytes, unwritten) = (Vec::leak(bytes), AtomicUsize::new(0));
        Box::leak(Box::new(Table { bytes, records, index, hasher, written, unwritten, begun, older }))
    }

    /// Whether there may be one more.
    pub(super) fn is_last(&self) -> bool {
        self.tables().count() >= MOST
    }

    /// How many entries are frozen and were not written since.
    pub(super) fn unwritten(&self) -> usize {
        self.tables().map(|table| table.unwritten.load(Ordering::Relaxed)).sum()
    }

    /// What the tables take, in bytes, whatever was written since.
    pub(super) fn size(&self) -> usize {
        let size = |table: &Table| {
            table.bytes.len() + size_of_val(&*table.records) + size_of_val(&*table.index) + size_of_val(&*table.written)
        };
        self.tables().map(size).sum()
    }

    /// How many entries were frozen, whatever was written since.
    pub(super) fn len(&self) -> usize {
        self.tables().map(|table| table.records.len()).sum()
    }

    /// The entry under a key, unless it was written since.
    #[inline]
    pub(super) fn find(&'static self, key: &str) -> Option<Frozen> {
        self.tables().find_map(|table| table.find_here(key)).filter(|found| !found.has_expired())
    }

    /// Marks what begins with `prefix` as written.
    pub(super) fn clear(&'static self, prefix: &str) {
        for table in self.tables() {
            for number in 0..table.records.len() {
                if table.key(number).starts_with(prefix.as_bytes()) {
                    Frozen { table, number }.mark();
                }
            }
        }
    }

    /// Has the table, and no longer the live layer, answer for an entry that it was made of.
    pub(super) fn take_over(&'static self, key: &str) {
        if let Some(number) = self.number_of(key) {
            self.written[number / WORD].fetch_and(!(1 << (number % WORD)), Ordering::AcqRel);
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// This one and the older ones.
    #[inline]
    fn tables(&self) -> impl Iterator<Item = &Table> {
        std::iter::successors(Some(self), |table| table.older)
    }

    #[inline]
    fn find_here(&'static self, key: &str) -> Option<Frozen> {
        let number = self.number_of(key)?;
        let found = Frozen { table: self, number };
        (!found.is_written()).then_some(found)
    }

    #[inline]
    fn number_of(&self, key: &str) -> Option<usize> {
        let mut place = self.hasher.hash_one(key.as_bytes()) as usize & (self.index.len() - 1);
        loop {
            let number = (self.index[place] as usize).checked_sub(1)?;
            if self.key(number) == key.as_bytes() {
                return Some(number);
            }
            place = (place + 1) & (self.index.len() - 1);
        }
    }

    fn key(&self, number: usize) -> &[u8] {
        let Record { at, key_length, .. } = self.records[number];
        &self.bytes[at..at + key_length as usize]
    }
}

impl Frozen {
    #[inline]
    pub(super) fn value(self) -> Bytes {
        let Record { at, key_length, value_length, .. } = self.table.records[self.number];
        let begin = at + key_length as usize;
        let bytes: &'static [u8] = self.table.bytes;
        Bytes::from_static(&bytes[begin..begin + value_length as usize])
    }

    pub(super) fn expires_at(self) -> Option<Instant> {
        match self.table.records[self.number].expires_at {
            NEVER => None,
            nanoseconds => self.table.begun.checked_add(Duration::from_nanos(nanoseconds)),
        }
    }

    #[inline]
    pub(super) fn is_written(self) -> bool {
        self.table.written[self.number / WORD].load(Ordering::Acquire) >> (self.number % WORD) & 1 == 1
    }

    /// Marks it as written. Returns whether it was.
    pub(super) fn mark(self) -> bool {
        let bit = 1 << (self.number % WORD);
        let was_written = self.table.written[self.number / WORD].fetch_or(bit, Ordering::AcqRel) & bit != 0;
        if !was_written {
            self.table.unwritten.fetch_sub(1, Ordering::Relaxed);
        }
        was_written
    }

    #[inline]
    fn has_expired(self) -> bool {
        let has_expired = self.expires_at().is_some_and(|expires_at| Instant::now() >= expires_at);
        if has_expired {
            self.mark();
        }
        has_expired
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER - 1)
}
