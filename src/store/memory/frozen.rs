//! A table of entries that is never written, so that children read it without copying it.
//!
//! A read in moka writes: reference counts, a log of reads, an order of use. In a forked child, each such write copies
//! a page. The keys and values of a table are in one leaked `Vec<u8>`, with an index of `u32`. A hit writes nothing
//! there.
//!
//! # The written bits
//!
//! Beside the table there is a bit for each entry, on pages that each process copies when it sets one. It is set when
//! the entry is overwritten, deleted, cleared or has expired. From then on the live entries, in the engine, are
//! authoritative for the key. The bit is never cleared again, so an old value never reappears, whatever is evicted.
//!
//! | entry | bit | live entry | a reader finds |
//! | --- | --- | --- | --- |
//! | being frozen | set | the same value | the live entry |
//! | frozen | clear | none, or the same value while it is frozen or outside_inline | the frozen entry |
//! | outside_inline | set | the same value | the live entry |
//! | written | set | the new value, or none | the live entry |
//!
//! To change an entry, it is *lifted* first: copied to the live entries, and only then is its bit set. A reader in
//! between finds the same value in either of them, and so does a child that is forked in between. Even a child that
//! cannot use the inherited live entries can use the frozen ones: a frozen entry whose bit is not set has its parent's
//! value.
//!
//! Freezing goes the other way, entry by entry, under the lock of the entry. A new table has all bits set. A bit is
//! cleared only while the live entry is still the one that was copied; then the live entry is removed. A reader that
//! reads the table before this and the live entries after it finds neither, so it reads the table again.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::quality::RandomState;

use super::entry::Entry;

/// The maximum number of tables, since none is ever freed.
const MAX_TABLES: usize = 4;

/// The time of expiry of an entry that never expires.
const NEVER: u64 = u64::MAX;

const WORD: usize = 64;

#[derive(Debug)]
pub(super) struct Table {
    /// The keys and values.
    bytes: &'static [u8],
    records: Vec<Record>,
    /// A hash table with linear probing: the index of a record plus one, at or after the position of its key's hash; 0
    /// ends the search.
    index: Vec<u32>,
    hasher: RandomState,
    written: Vec<AtomicU64>,
    unwritten: AtomicUsize,
    begun: Instant,
    /// The previous table.
    older: Option<&'static Table>,
}

#[derive(Debug)]
struct Record {
    /// Where the key begins in the bytes. The value follows it.
    at: usize,
    key_length: u32,
    value_length: u32,
    /// In nanoseconds since `begun`, or [`NEVER`].
    expires_at: u64,
}

/// A reference to an entry of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frozen {
    table: &'static Table,
    number: usize,
}

impl Table {
    /// Creates a table of these entries, all marked as written.
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
            let mut position = hasher.hash_one(key.as_bytes()) as usize & (index.len() - 1);
            while index[position] != 0 {
                position = (position + 1) & (index.len() - 1);
            }
            index[position] = number;
        }
        let written = (0..records.len().div_ceil(WORD)).map(|_| AtomicU64::new(u64::MAX)).collect();
        let (bytes, unwritten) = (Vec::leak(bytes), AtomicUsize::new(0));
        Box::leak(Box::new(Table { bytes, records, index, hasher, written, unwritten, begun, older }))
    }

    /// Returns whether there may be no further table.
    pub(super) fn is_last(&self) -> bool {
        self.tables().count() >= MAX_TABLES
    }

    /// Returns the number of frozen entries that were not written since.
    pub(super) fn unwritten(&self) -> usize {
        self.tables().map(|table| table.unwritten.load(Ordering::Relaxed)).sum()
    }

    /// Returns the size of all tables in bytes, including entries that were written since.
    pub(super) fn size(&self) -> usize {
        let size = |table: &Table| {
            table.bytes.len() + size_of_val(&*table.records) + size_of_val(&*table.index) + size_of_val(&*table.written)
        };
        self.tables().map(size).sum()
    }

    /// Returns the number of entries in all tables, including those that were written since.
    pub(super) fn len(&self) -> usize {
        self.tables().map(|table| table.records.len()).sum()
    }

    /// Returns the frozen entry under a key, unless it was written since.
    #[inline]
    pub(super) fn find(&'static self, key: &str) -> Option<Frozen> {
        self.tables().find_map(|table| table.find_here(key)).filter(|found| !found.has_expired())
    }

    /// Marks the entries whose keys start with `prefix` as written.
    pub(super) fn clear(&'static self, prefix: &str) {
        for table in self.tables() {
            for number in 0..table.records.len() {
                if table.key(number).starts_with(prefix.as_bytes()) {
                    Frozen { table, number }.mark();
                }
            }
        }
    }

    /// Clears the bit of an entry, so that readers find it in the table instead of among the live entries.
    pub(super) fn take_over(&'static self, key: &str) {
        if let Some(number) = self.number_of(key) {
            self.written[number / WORD].fetch_and(!(1 << (number % WORD)), Ordering::AcqRel);
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns this table and the older ones.
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
        let mut position = self.hasher.hash_one(key.as_bytes()) as usize & (self.index.len() - 1);
        loop {
            let number = (self.index[position] as usize).checked_sub(1)?;
            if self.key(number) == key.as_bytes() {
                return Some(number);
            }
            position = (position + 1) & (self.index.len() - 1);
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

    /// Marks the entry as written. Returns whether it was marked before.
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
