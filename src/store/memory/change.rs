//! A change to an entry, whatever table holds it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::account::Account;
use super::entry::Entry;

/// A change to an entry.
pub(super) enum Change {
    Keep,
    Put {
        value: Bytes,
        expires_at: Option<Instant>,
    },
    /// Adds a slot for the decoded value, whose size in bytes is `decoded`.
    AddSlot {
        decoded: usize,
    },
    Remove,
}

impl Change {
    /// Returns the entry that replaces `current`, if any.
    pub(super) fn entry(self, account: &Arc<Account>, key: &str, current: Option<&Arc<Entry>>) -> Option<Arc<Entry>> {
        match self {
            Change::Keep | Change::Remove => None,
            Change::Put { value, expires_at } => Some(Entry::new(account, key, value, expires_at)),
            Change::AddSlot { decoded } => current.map(|current| current.with_slot(account, key, decoded)),
        }
    }
}
