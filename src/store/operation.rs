//! The operations of a batch, and their implementation by the other methods of a store.

use bytes::Bytes;

use super::{CONFLICT_ATTEMPTS, CacheStore, Ttl, When, conflict};
use crate::error::Result;

/// One operation of a [batch](CacheStore::batch).
///
/// ```
/// use prefork_cache::{CacheStore, Op, Outcome, Ttl, When, stores::MemoryStore};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let store = MemoryStore::new();
/// let set = Op::Set { key: "motd", value: "hello".into(), ttl: Ttl::Never, when: When::IfAbsent };
/// let outcomes = store.batch(&[set, Op::Get { key: "motd" }]).await;
/// assert_eq!(outcomes[0].as_ref().unwrap(), &Outcome::Done(true));
/// assert_eq!(outcomes[1].as_ref().unwrap(), &Outcome::Value(Some("hello".into())));
/// # });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// [`get_latest`](CacheStore::get_latest). Its outcome is [`Outcome::Value`].
    Get {
        /// The entry's key.
        key: &'a str,
    },
    /// [`set`](CacheStore::set). Its outcome is [`Outcome::Done`].
    Set {
        /// The entry's key.
        key: &'a str,
        /// The value to store.
        value: Bytes,
        /// How long the entry lives.
        ttl: Ttl,
        /// The condition under which it is stored.
        when: When,
    },
    /// [`delete`](CacheStore::delete). Its outcome is [`Outcome::Done`].
    Delete {
        /// The entry's key.
        key: &'a str,
    },
    /// [`compare_and_set`](CacheStore::compare_and_set). Its outcome is [`Outcome::Done`].
    CompareAndSet {
        /// The entry's key.
        key: &'a str,
        /// The value that the entry must have; `None`: there must be no entry.
        expected: Option<&'a [u8]>,
        /// The value to store; `None`: the entry is removed.
        new: Option<Bytes>,
        /// How long the entry lives.
        ttl: Ttl,
    },
    /// Ends a [lease](Settle), and stores the value that was loaded under it. Its outcome is [`Outcome::Settled`].
    Settle(Settle<'a>),
}

/// The end of a lease. A lease is an entry under a key of its own, beside the entry that its holder loads for all
/// processes.
///
/// If the lease's value begins with `token`, the value is stored, and the lease is removed or replaced by a mark.
/// Otherwise the lease was revoked by a delete of the entry, or taken by another holder, and nothing is changed.
///
/// A delete revokes a lease by a [set](Op::Set) of the lease with [`When::IfPresent`], and then deletes the entry. A
/// store that cannot settle atomically makes that set, and the operations after it in the batch, wait for any settle
/// that has seen its lease held and has not stored its value yet. Alternatively, it may store the value and remove it
/// again if the lease turns out to be lost. It never restores a previous value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settle<'a> {
    /// The key of the entry.
    pub key: &'a str,
    /// The key of its lease.
    pub lease: &'a str,
    /// The beginning of the lease's value while the holder has it.
    pub token: &'a [u8],
    /// The value to store, if any.
    pub store: Option<Replacement<'a>>,
    /// The mark that replaces the lease, and its time to live; `None`: the lease is removed.
    pub mark: Option<(&'a [u8], Ttl)>,
}

/// A value to store if the entry has not changed since it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replacement<'a> {
    /// The value that the entry must have, unless the entry is gone; `None`: there must be no entry.
    pub seen: Option<&'a [u8]>,
    /// The value to store.
    pub value: &'a Bytes,
    /// How long the entry lives.
    pub ttl: Ttl,
}

/// The result of an [operation](Op) of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The result of a get: the value, or `None`.
    Value(Option<Bytes>),
    /// The result of a set, a delete or a compare-and-set: whether it changed the entry.
    Done(bool),
    /// The result of a settle.
    Settled {
        /// Whether the holder still had the lease.
        was_held: bool,
        /// Whether the value was stored, and not removed again.
        is_stored: bool,
    },
}

impl<'a> Op<'a> {
    /// Returns the key of the entry that the operation reads or changes.
    ///
    /// ```
    /// assert_eq!(prefork_cache::Op::Delete { key: "motd" }.key(), "motd");
    /// ```
    pub fn key(&self) -> &'a str {
        match self {
            Op::Get { key } | Op::Set { key, .. } | Op::Delete { key } | Op::CompareAndSet { key, .. } => key,
            Op::Settle(settle) => settle.key,
        }
    }

    /// Returns whether the operation only reads.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self, Op::Get { .. })
    }
}

impl Outcome {
    /// Returns the value of a get.
    pub(crate) fn into_value(self) -> Option<Bytes> {
        match self {
            Outcome::Value(value) => value,
            Outcome::Done(_) | Outcome::Settled { .. } => None,
        }
    }

    /// Returns whether a write has changed something.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Outcome::Done(done) => *done,
            Outcome::Settled { was_held, .. } => *was_held,
            Outcome::Value(_) => false,
        }
    }
}

/// Implements [`CacheStore::get_many`] by a batch.
pub(super) async fn get_many<S: CacheStore + ?Sized>(store: &S, keys: &[&str]) -> Vec<Result<Option<Bytes>>> {
    let operations: Vec<Op<'_>> = keys.iter().map(|key| Op::Get { key }).collect();
    values(store.batch(&operations).await)
}

pub(super) fn values(outcomes: Vec<Result<Outcome>>) -> Vec<Result<Option<Bytes>>> {
    outcomes.into_iter().map(|outcome| outcome.map(Outcome::into_value)).collect()
}

/// Implements [`CacheStore::set_many`] by a batch.
pub(super) async fn set_many<S: CacheStore + ?Sized>(
    store: &S,
    entries: &[(&str, Bytes)],
    ttl: Ttl,
) -> Vec<Result<()>> {
    let operations: Vec<Op<'_>> =
        entries.iter().map(|(key, value)| Op::Set { key, value: value.clone(), ttl, when: When::Always }).collect();
    store.batch(&operations).await.into_iter().map(|outcome| outcome.map(|_| ())).collect()
}

/// Implements [`CacheStore::delete_many`] by a batch.
#[cfg(feature = "redis")]
pub(super) async fn delete_many<S: CacheStore + ?Sized>(store: &S, keys: &[&str]) -> Vec<Result<bool>> {
    let operations: Vec<Op<'_>> = keys.iter().map(|key| Op::Delete { key }).collect();
    store.batch(&operations).await.into_iter().map(|outcome| outcome.map(|outcome| outcome.is_done())).collect()
}

/// Carries out one operation by the other methods of a store.
pub(super) async fn carry_out<S: CacheStore + ?Sized>(store: &S, operation: &Op<'_>) -> Result<Outcome> {
    match operation {
        Op::Get { key } => store.get_latest(key).await.map(Outcome::Value),
        Op::Set { key, value, ttl, when } => store.set(key, value.clone(), *ttl, *when).await.map(Outcome::Done),
        Op::Delete { key } => store.delete(key).await.map(Outcome::Done),
        Op::CompareAndSet { key, expected, new, ttl } => {
            store.compare_and_set(key, *expected, new.clone(), *ttl).await.map(Outcome::Done)
        }
        Op::Settle(settle) => carry_out_settle(store, settle).await,
    }
}

/// Implements a settle by reads and compare-and-sets. The lease is read first, so that a value is rarely stored and
/// then removed again.
pub(super) async fn carry_out_settle<S: CacheStore + ?Sized>(store: &S, settle: &Settle<'_>) -> Result<Outcome> {
    const REVOKED: Outcome = Outcome::Settled { was_held: false, is_stored: false };
    if !is_held(store.get_latest(settle.lease).await?.as_deref(), settle.token) {
        return Ok(REVOKED);
    }
    let stored = match settle.store {
        Some(Replacement { seen, value, ttl }) => {
            let mut stored = store.compare_and_set(settle.key, seen, Some(value.clone()), ttl).await;
            if seen.is_some() && matches!(stored, Ok(false)) {
                // The entry may have expired since it was read.
                stored = store.compare_and_set(settle.key, None, Some(value.clone()), ttl).await;
            }
            stored.map(|stored| stored.then_some(value))
        }
        None => Ok(None),
    };
    let released = release(store, settle).await;
    let stored = stored?;
    if !matches!(released, Ok(false)) {
        return released.map(|was_held| Outcome::Settled { was_held, is_stored: stored.is_some() });
    }
    if let Some(value) = stored {
        store.compare_and_set(settle.key, Some(value), None, Ttl::Never).await?;
    }
    Ok(REVOKED)
}

/// Ends a lease, whatever its holder has written behind the token. Returns whether the holder still had it.
pub(super) async fn release<S: CacheStore + ?Sized>(store: &S, settle: &Settle<'_>) -> Result<bool> {
    for _ in 0..CONFLICT_ATTEMPTS {
        let held = store.get_latest(settle.lease).await?;
        if !is_held(held.as_deref(), settle.token) {
            return Ok(false);
        }
        let (mark, ttl) =
            settle.mark.map_or((None, Ttl::Never), |(mark, ttl)| (Some(Bytes::copy_from_slice(mark)), ttl));
        if store.compare_and_set(settle.lease, held.as_deref(), mark, ttl).await? {
            return Ok(true);
        }
    }
    Err(conflict("releasing", settle.lease))
}

pub(super) fn is_held(lease: Option<&[u8]>, token: &[u8]) -> bool {
    lease.is_some_and(|lease| lease.starts_with(token))
}
