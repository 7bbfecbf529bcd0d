//! One operation of a batch on a cluster.

use crate::error::Result;
use crate::store::hash_slot::slot;
use crate::store::redis::batch;
use crate::store::{CacheStore, Op, Outcome, When, operation};

pub(super) struct Item<'o> {
    pub(super) work: Work<'o>,
    pub(super) slot: u16,
}

#[derive(Clone, Copy)]
pub(super) enum Work<'o> {
    /// A get of this key, without an [`Op`]: they are large, and a read may be of thousands of keys.
    Get(&'o str),
    Operation(&'o Op<'o>),
}

impl<'o> Item<'o> {
    pub(super) fn new(work: Work<'o>) -> Item<'o> {
        Item { work, slot: slot(work.key()) }
    }

    pub(super) fn key(&self) -> &'o str {
        self.work.key()
    }

    /// Returns whether it may be executed twice.
    pub(super) fn may_be_repeated(&self) -> bool {
        match self.work {
            Work::Get(_) => true,
            Work::Operation(operation) => {
                matches!(operation, Op::Get { .. } | Op::Delete { .. } | Op::Set { when: When::Always, .. })
            }
        }
    }

    /// Executes it by the other methods of a store.
    pub(super) async fn carry_out<S: CacheStore>(&self, store: &S) -> Result<Outcome> {
        match self.work {
            Work::Get(key) => store.get_latest(key).await.map(Outcome::Value),
            Work::Operation(operation) => operation::carry_out(store, operation).await,
        }
    }

    pub(super) fn is_read(&self) -> bool {
        match self.work {
            Work::Get(_) => true,
            Work::Operation(operation) => operation.is_read(),
        }
    }

    /// Returns the approximate size on the wire, in bytes.
    pub(super) fn size(&self) -> usize {
        match self.work {
            Work::Get(key) => key.len(),
            Work::Operation(operation) => batch::size(operation),
        }
    }
}

impl<'o> Work<'o> {
    fn key(self) -> &'o str {
        match self {
            Work::Get(key) => key,
            Work::Operation(operation) => operation.key(),
        }
    }
}
