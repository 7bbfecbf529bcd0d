//! Freezing, and lifting what is frozen.

use std::sync::Arc;

use bytes::Bytes;

use super::engine::{Change, Engine};
use super::frozen::{Frozen, Table};
use super::per_process::PerProcess;
use super::settings::Bound;
use super::{MemoryStore, inside};

impl MemoryStore {
    /// Moves what is there into a table that is never written, for forked children to read without copying it. Returns
    /// whether there is a new table.
    ///
    /// For a master that has warmed its cache, before it forks. A read of an ordinary entry writes to memory, so that a
    /// child soon has a copy of all that it reads. A read of a frozen one does not; what is frozen is there once, however
    /// many children read it. It is written, deleted and expires like anything else, in each process by itself; it is
    /// never evicted. A [shared read](crate::Cache::get_shared) makes an ordinary entry of it, in the process that reads.
    ///
    /// What is frozen takes 24 bytes beside key and value, and a place in an index, instead of 384. It counts toward the
    /// bound for as long as the process lives, also when it was overwritten, since it is never freed; up to seven eighths
    /// of the bound can be frozen, and the rest stays as it is. Freezing again adds a table of what was written since, if
    /// that is at least a tenth of what is frozen. There are four tables at most.
    ///
    /// A child inherits what is frozen also where it is cold otherwise, unless it was asked to start
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
    /// The value of an entry that is frozen and was not written since.
    #[inline]
    pub(super) fn read_frozen(&self, key: &str) -> Option<Bytes> {
        self.frozen.get()?.find(key).map(Frozen::value)
    }

    /// Has the live layer answer for a key from now on.
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
        let _turn = self.freezing.lock();
        let engine = self.engine_to_write();
        let older = self.frozen.get();
        let mut entries = engine.entries();
        let is_worth_it = older.is_none_or(|older| !older.is_last() && entries.len() * 10 >= older.unwritten());
        let most = bound.limit() / 8 * 7;
        let mut taken = engine.account().frozen();
        entries.retain(|(key, entry)| {
            let fits = taken + bound.weigh(key, entry.value.len()) <= most;
            taken += if fits { bound.weigh(key, entry.value.len()) } else { 0 };
            fits
        });
        if !is_worth_it || entries.is_empty() {
            return false;
        }
        let table = Table::new(&entries, older);
        self.frozen.set(table);
        for (key, entry) in entries {
            inside(|| {
                engine.change(&key, |current| match current {
                    Some(current) if Arc::ptr_eq(current, &entry) => {
                        table.take_over(&key);
                        (Change::Remove, ())
                    }
                    _ => (Change::Keep, ()),
                });
            });
        }
        inside(|| {
            engine.set_frozen(bound.of_table(table));
            engine.collect_all();
        });
        true
    }
}

impl Bound {
    /// What a table counts for.
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
    inside(|| {
        let has_room = engine.account().has_room();
        let is_put = engine.change(key, |current| {
            if current.is_some() || frozen.is_written() || !has_room {
                return (Change::Keep, false);
            }
            (Change::Put { value: frozen.value(), expires_at: frozen.expires_at() }, true)
        });
        let was_written = frozen.mark();
        if is_put && was_written {
            // Another thread has cleared it in between.
            engine.change(key, |current| match current {
                Some(current) if is_this(&current.value) => (Change::Remove, ()),
                _ => (Change::Keep, ()),
            });
        }
    });
}
