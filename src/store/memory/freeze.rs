//! Freezing entries, and lifting frozen ones.

use std::sync::Arc;

use bytes::Bytes;

use super::change::Change;
use super::engine::Engine;
use super::frozen::{Frozen, Table};
use super::per_process::PerProcess;
use super::settings::Bound;
use super::{MemoryStore, in_gate};

impl MemoryStore {
    /// Moves the entries into a table that is never written, so that forked children read it without copying it.
    /// Returns whether there is a new table.
    ///
    /// A master calls it after it has filled its cache and before it forks. A read of an ordinary entry writes to
    /// memory, so a child soon has a copy of every page that it reads. A read of a frozen entry writes nothing, so the
    /// entry is in memory once, however many children read it. Frozen entries can be overwritten and deleted, and
    /// expire, like any other, in each process independently. They are never evicted. A [shared
    /// read](crate::Cache::get_shared) makes the entry an ordinary one in the process that reads it.
    ///
    /// A frozen entry takes 24 bytes and a slot in an index, besides its key and value, instead of 384 bytes. It
    /// counts toward the bound for as long as the process lives, even when it was overwritten, since it is never
    /// freed. At most seven eighths of the bound are frozen; the other entries stay ordinary ones. Freezing again adds
    /// a table of the entries that were written since, if there are at least a tenth as many as there are frozen ones.
    /// There are at most four tables.
    ///
    /// A child inherits frozen entries even if it is cold otherwise, unless it was set to start
    /// [fresh](super::AtFork::Fresh).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::{sync::Arc, time::Duration};
    ///
    /// let store = Arc::new(MemoryStore::new());
    /// let cache = Cache::builder(store.clone()).register();
    /// cache.blocking().set("motd", "hello", Duration::from_secs(60))?;
    /// assert!(store.freeze());
    /// // ... fork the workers ...
    /// assert_eq!(cache.blocking().get::<String>("motd")?.as_deref(), Some("hello"));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn freeze(&self) -> bool {
        self.local().freeze(self.bound)
    }
}

impl PerProcess {
    /// Returns the value of a frozen entry that was not written since.
    #[inline]
    pub(super) fn read_frozen(&self, key: &str) -> Option<Bytes> {
        self.frozen.get()?.find(key).map(Frozen::value)
    }

    /// Moves a frozen entry to the live entries, so that it can be changed.
    #[inline]
    pub(super) fn lift(&self, key: &str) {
        if let Some(frozen) = self.frozen.get().and_then(|table| table.find(key)) {
            lift(self.engine_to_write(), key, frozen);
        }
    }

    pub(super) fn clear(&self, prefix: &str) {
        if let Some(table) = self.frozen.get() {
            table.clear(prefix);
        }
        self.engine_to_write().clear(prefix);
    }

    fn freeze(&self, bound: Bound) -> bool {
        let _guard = self.freezing.lock();
        let engine = self.engine_to_write();
        let older = self.frozen.get();
        let mut entries = engine.entries();
        let is_worth_it = older.is_none_or(|older| !older.is_last() && entries.len() * 10 >= older.unwritten());
        let limit = bound.limit() / 8 * 7;
        let mut frozen = engine.account().frozen();
        entries.retain(|(key, entry)| {
            let fits = frozen + bound.weigh(key, entry.value.len()) <= limit;
            frozen += if fits { bound.weigh(key, entry.value.len()) } else { 0 };
            fits
        });
        if !is_worth_it || entries.is_empty() {
            return false;
        }
        let table = Table::new(&entries, older);
        self.frozen.set(table);
        for (key, entry) in entries {
            in_gate(|| {
                engine.change(&key, |current| match current {
                    Some(current) if Arc::ptr_eq(current, &entry) => {
                        table.take_over(&key);
                        (Change::Remove, ())
                    }
                    _ => (Change::Keep, ()),
                });
            });
        }
        in_gate(|| {
            engine.set_frozen(bound.of_table(table));
            engine.collect_all();
        });
        true
    }
}

impl Bound {
    /// Returns the weight of a table.
    pub(super) fn of_table(self, table: &Table) -> u64 {
        match self {
            Bound::Bytes(_) => table.size() as u64,
            Bound::Entries(_) => table.len() as u64,
        }
    }
}

#[cold]
fn lift(engine: &Engine, key: &str, frozen: Frozen) {
    let is_this = |value: &Bytes| value.as_ptr() == frozen.value().as_ptr();
    in_gate(|| {
        let has_room = engine.account().has_room();
        let is_put = engine.change(key, |current| {
            if current.is_some() || frozen.is_written() || !has_room {
                return (Change::Keep, false);
            }
            (Change::Put { value: frozen.value(), expires_at: frozen.expires_at() }, true)
        });
        let was_written = frozen.mark();
        if is_put && was_written {
            // Another thread has cleared the entry in the meantime.
            engine.change(key, |current| match current {
                Some(current) if is_this(&current.value) => (Change::Remove, ()),
                _ => (Change::Keep, ()),
            });
        }
    });
}
