//! The mark of a settle that is under way.
//!
//! Memcached cannot store one entry on the condition of another. So whoever [settles](crate::store::Settle) first puts
//! a mark beside the lease, then looks whether the lease is still its own, then stores, then removes the mark. Whoever
//! takes a lease from its holder (a set on the condition that there is one) looks for the mark after that. Either the
//! holder finds its lease taken, and stores nothing; or the mark is found, is waited for, and what was stored before it
//! went is deleted: no value appears behind a delete that has returned.
//!
//! The first two are one exchange, and so are the last two: a settle still takes two round trips. A delete reads one
//! key more in its one write, and waits only where it meets a mark.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::MemcachedStore;
use super::meta::Answer;
use crate::error::Result;
use crate::execution::pause;
use crate::store::{CacheStore, Op, Outcome, Settle, Ttl, When, key_of_lease, lease_holder, settling_key};

/// The pauses between two looks: doubled from the shortest to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Between the name of the mark's holder, by which it is seen to be dead, and the token of the lease.
const END_OF_HOLDER: u8 = 0;

/// A mark that an operation puts, or looks for.
pub(super) struct Settling {
    pub(super) key: String,
    pub(super) value: Bytes,
}

/// One that was met.
pub(super) struct UnderWay<'s> {
    key: &'s str,
    value: Bytes,
}

impl Settling {
    /// That of a settle that stores, or of what takes a lease from its holder.
    pub(super) fn of(operation: &Op<'_>) -> Option<Settling> {
        match operation {
            Op::Settle(Settle { key, token, store: Some(_), .. }) => {
                let mut value = BytesMut::with_capacity(token.len() + 1 + lease_holder::own().len());
                value.put_slice(lease_holder::own().as_bytes());
                value.put_u8(END_OF_HOLDER);
                value.put_slice(token);
                Some(Settling { key: settling_key(key), value: value.freeze() })
            }
            Op::Set { key, when: When::IfPresent, .. } => {
                key_of_lease(key).map(|key| Settling { key: settling_key(key), value: Bytes::new() })
            }
            _ => None,
        }
    }

    pub(super) fn is_under_way(&self, found: &Result<Answer>) -> Option<UnderWay<'_>> {
        match found {
            Ok(Answer::Value { value, .. }) => Some(UnderWay { key: &self.key, value: value.clone() }),
            _ => None,
        }
    }

    /// The version of a mark whose process has ended.
    pub(super) fn is_left_behind(found: &Answer) -> Option<u64> {
        match found {
            Answer::Value { value, cas } => has_ended(value).then_some(*cas),
            _ => None,
        }
    }
}

impl MemcachedStore {
    /// Longer than both exchanges of a settle may take.
    pub(super) fn settling_ttl(&self) -> Ttl {
        Ttl::After(2 * self.timeout + Duration::from_secs(1))
    }

    /// Removes the mark of a settle whose second exchange may have failed.
    pub(super) async fn end_settling(&self, settle: &Settle<'_>) -> Result<()> {
        let Some(settling) = Settling::of(&Op::Settle(*settle)) else { return Ok(()) };
        self.compare_and_set(&settling.key, Some(&settling.value), None, Ttl::Never).await.map(|_| ())
    }

    /// Waits until these marks are gone, at most as long as an exchange may take: their settles have got an answer by
    /// then, or will get none.
    pub(super) async fn until_settled(&self, under_way: &[UnderWay<'_>]) {
        let mut waited = Duration::ZERO;
        let mut length = SHORTEST_PAUSE;
        let mut left: Vec<&UnderWay<'_>> = under_way.iter().collect();
        while !left.is_empty() && waited < self.timeout {
            let looks: Vec<&str> = left.iter().map(|settling| settling.key).collect();
            let mut found = self.get_many(&looks).await.into_iter();
            // Another one in its place belongs to a lease that was taken later.
            left.retain(|settling| matches!(found.next(), Some(Ok(Some(value))) if value == settling.value));
            left.retain(|settling| !has_ended(&settling.value));
            if !left.is_empty() && pause(length).await.is_err() {
                return;
            }
            waited += length;
            length = (2 * length).min(LONGEST_PAUSE);
        }
    }

    /// Deletes once more what may have been stored behind the first time.
    pub(super) async fn delete_again(
        &self,
        under_way: &[UnderWay<'_>],
        operations: &[Op<'_>],
        outcomes: &mut [Result<Outcome>],
    ) {
        for (operation, outcome) in operations.iter().zip(outcomes) {
            let Op::Delete { key } = operation else { continue };
            if !under_way.iter().any(|settling| key_of_lease(settling.key) == Some(key)) {
                continue;
            }
            if let Ok(Outcome::Done(was_there)) = outcome {
                *outcome = self.delete(key).await.map(|is_there| Outcome::Done(*was_there || is_there));
            }
        }
    }
}

fn has_ended(mark: &[u8]) -> bool {
    let holder = mark.split(|byte| *byte == END_OF_HOLDER).next();
    holder.and_then(|holder| std::str::from_utf8(holder).ok()).is_some_and(lease_holder::has_ended)
}
