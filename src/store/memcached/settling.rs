//! The mark of a settle in progress.
//!
//! Memcached cannot store one entry on the condition of another. Therefore a [settle](crate::store::Settle)
//!
//! 1. adds a mark beside the lease,
//! 2. checks that the lease is still its own,
//! 3. stores the value, and
//! 4. removes the mark.
//!
//! A delete that revokes the lease (a set with [`When::IfPresent`] of the lease) looks for the mark after revoking.
//! Either the holder finds its lease revoked, and stores nothing. Or the delete finds the mark, waits until it is
//! gone, and deletes the entry again. So no value of a revoked load is there after a delete has returned.
//!
//! Steps 1 and 2 are one exchange, and so are steps 3 and 4, so a settle takes two round trips, as without a mark. A
//! delete reads one more key in the same write, and waits only if it finds a mark.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::MemcachedStore;
use super::meta::Answer;
use crate::error::Result;
use crate::execution::pause;
use crate::store::{CacheStore, Op, Outcome, Settle, Ttl, When, key_of_lease, lease_holder, settling_key};

/// The pauses between two checks for a mark: they double from the shortest to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Separates the name of the process that has added the mark, by which others see whether it has ended, from the token
/// of the lease.
const END_OF_HOLDER: u8 = 0;

/// A mark that an operation adds or looks for.
pub(super) struct SettlingMark {
    pub(super) key: String,
    pub(super) value: Bytes,
}

/// A mark of another settle that a revoking set has found.
pub(super) struct FoundMark<'s> {
    key: &'s str,
    value: Bytes,
}

impl SettlingMark {
    /// Returns the mark that a settle with a value adds, or that a set that revokes a lease looks for.
    pub(super) fn for_operation(operation: &Op<'_>) -> Option<SettlingMark> {
        match operation {
            Op::Settle(Settle { key, token, store: Some(_), .. }) => {
                let mut value = BytesMut::with_capacity(token.len() + 1 + lease_holder::own().len());
                value.put_slice(lease_holder::own().as_bytes());
                value.put_u8(END_OF_HOLDER);
                value.put_slice(token);
                Some(SettlingMark { key: settling_key(key), value: value.freeze() })
            }
            Op::Set { key, when: When::IfPresent, .. } => {
                key_of_lease(key).map(|key| SettlingMark { key: settling_key(key), value: Bytes::new() })
            }
            _ => None,
        }
    }

    /// Returns the mark that was found, if any.
    pub(super) fn found(&self, answer: &Result<Answer>) -> Option<FoundMark<'_>> {
        match answer {
            Ok(Answer::Value { value, .. }) => Some(FoundMark { key: &self.key, value: value.clone() }),
            _ => None,
        }
    }

    /// Returns the version number of a mark whose process has ended.
    pub(super) fn abandoned_cas(answer: &Answer) -> Option<u64> {
        match answer {
            Answer::Value { value, cas } => has_ended(value).then_some(*cas),
            _ => None,
        }
    }
}

impl MemcachedStore {
    /// Returns the time to live of a mark: longer than both exchanges of a settle may take.
    pub(super) fn settling_ttl(&self) -> Ttl {
        Ttl::After(2 * self.timeout + Duration::from_secs(1))
    }

    /// Removes the mark of a settle whose second exchange may have failed.
    pub(super) async fn end_settling(&self, settle: &Settle<'_>) -> Result<()> {
        let Some(settling) = SettlingMark::for_operation(&Op::Settle(*settle)) else { return Ok(()) };
        self.compare_and_set(&settling.key, Some(&settling.value), None, Ttl::Never).await.map(|_| ())
    }

    /// Waits until these marks are gone, for at most the timeout of an exchange: after that, their settles have had a
    /// reply or have failed.
    pub(super) async fn wait_until_settled(&self, found_marks: &[FoundMark<'_>]) {
        let mut waited = Duration::ZERO;
        let mut pause_length = SHORTEST_PAUSE;
        let mut left: Vec<&FoundMark<'_>> = found_marks.iter().collect();
        while !left.is_empty() && waited < self.timeout {
            let keys: Vec<&str> = left.iter().map(|settling| settling.key).collect();
            let mut found = self.get_many(&keys).await.into_iter();
            // A different mark under the same key belongs to a lease that was taken later.
            left.retain(|settling| matches!(found.next(), Some(Ok(Some(value))) if value == settling.value));
            left.retain(|settling| !has_ended(&settling.value));
            if !left.is_empty() && pause(pause_length).await.is_err() {
                return;
            }
            waited += pause_length;
            pause_length = (2 * pause_length).min(LONGEST_PAUSE);
        }
    }

    /// Deletes again each entry that a settle in progress may have stored after the first delete.
    pub(super) async fn delete_again(
        &self,
        found_marks: &[FoundMark<'_>],
        operations: &[Op<'_>],
        outcomes: &mut [Result<Outcome>],
    ) {
        for (operation, outcome) in operations.iter().zip(outcomes) {
            let Op::Delete { key } = operation else { continue };
            if !found_marks.iter().any(|settling| key_of_lease(settling.key) == Some(key)) {
                continue;
            }
            if let Ok(Outcome::Done(was_there)) = outcome {
                *outcome = self.delete(key).await.map(|is_there| Outcome::Done(*was_there || is_there));
            }
        }
    }
}

/// Returns whether the process that has added a mark has ended.
fn has_ended(mark: &[u8]) -> bool {
    let holder = mark.split(|byte| *byte == END_OF_HOLDER).next();
    holder.and_then(|holder| std::str::from_utf8(holder).ok()).is_some_and(lease_holder::has_ended)
}
