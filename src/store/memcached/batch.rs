//! A batch of operations: one exchange with each server, and a second one for the writes that depend on what the first
//! has read.
//!
//! | operation | first exchange | second exchange |
//! | --- | --- | --- |
//! | get, set, delete, compare-and-set of a missing entry | the operation | |
//! | compare-and-set | reads the entry | writes it |
//! | settle without a value | reads the lease | ends it |
//! | settle with a value | adds its mark; reads the mark, the lease and the entry | writes the entry, ends the lease, removes the mark |
//! | set that revokes a lease | the set; reads the mark | |
//!
//! The second exchange writes by the version numbers (CAS) that the first has read, on the same server, since version
//! numbers of different servers are unrelated. A [mark](super::settling) that a revoking set has read is waited for.

use std::collections::HashSet;

use bytes::Bytes;

use super::expiry::expiry;
use super::key::Key;
use super::meta::{Answer, Command, Condition};
use super::servers::Entry;
use super::settling::SettlingMark;
use super::{MemcachedStore, delete_of, get_of, value};
use crate::error::Result;
use crate::net::Retry;
use crate::store::operation::{is_held, release};
use crate::store::{CacheStore, Op, Outcome, Replacement, Settle, Ttl, When};

const REVOKED: Outcome = Outcome::Settled { was_held: false, is_stored: false };

/// The state of an operation after the first exchange.
enum Step {
    /// The operation is complete.
    Known(Result<Outcome>),
    /// A compare-and-set whose write is at this index of the second exchange.
    Swap { at: usize },
    /// A settle whose writes of the entry and the lease are at these indices of the second exchange.
    Settle { stored_at: Option<usize>, lease_at: usize },
}

/// The second exchange: commands, each with the server that has the version number it depends on.
type Writes<'o> = Vec<(usize, Result<Entry<'o>>)>;

impl MemcachedStore {
    /// Carries out a batch, in several parts if an operation depends on the second exchange of an earlier one.
    pub(super) async fn carry_out(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        let mut outcomes = Vec::with_capacity(operations.len());
        while outcomes.len() < operations.len() {
            let rest = &operations[outcomes.len()..];
            outcomes.extend(self.carry_out_together(&rest[..count_independent(rest)]).await);
        }
        outcomes
    }

    /// Carries out operations of which none depends on the second exchange of another.
    async fn carry_out_together(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        let mut entries = Vec::with_capacity(operations.len());
        let mut starts = Vec::with_capacity(operations.len());
        let settling: Vec<Option<SettlingMark>> =
            operations.iter().map(|operation| SettlingMark::for_operation(operation)).collect();
        for (operation, settling) in operations.iter().zip(&settling) {
            starts.push(entries.len());
            if let (Some(settling), Op::Settle(_)) = (settling, operation) {
                entries.push(self.set_of(
                    &settling.key,
                    settling.value.clone(),
                    self.settling_ttl(),
                    Condition::IfAbsent,
                ));
                entries.push(get_with_cas_of(&settling.key));
            }
            self.push_first(operation, &mut entries);
            if let (Some(settling), Op::Set { .. }) = (settling, operation) {
                entries.push(get_of(&settling.key));
            }
        }
        let retry = if operations.iter().all(Op::is_read) { Retry::Idempotent } else { Retry::Never };
        let answers = self.servers.batch_located(&entries, retry).await;
        let mut writes = Vec::new();
        let mut steps = Vec::with_capacity(operations.len());
        let mut found_marks = Vec::new();
        for ((operation, start), settling) in operations.iter().zip(starts).zip(&settling) {
            let answers = &answers[start..];
            match (settling, operation) {
                (Some(settling), Op::Settle(settle)) => {
                    steps.push(marked_step(settle, settling, answers, &mut writes));
                    continue;
                }
                (Some(settling), _) => found_marks.extend(settling.found(&answers[1].1)),
                (None, _) => {}
            }
            steps.push(next_step(operation, answers, &mut writes));
        }
        let written = self.servers.batch_on(&writes, Retry::Never).await;
        let mut outcomes = Vec::with_capacity(operations.len());
        for (operation, step) in operations.iter().zip(steps) {
            outcomes.push(self.finish(operation, step, &written).await);
        }
        if !found_marks.is_empty() {
            self.wait_until_settled(&found_marks).await;
            self.delete_again(&found_marks, operations, &mut outcomes).await;
        }
        outcomes
    }

    /// Adds the commands of an operation to the first exchange: one, or two for a settle with a value.
    fn push_first<'o>(&self, operation: &Op<'o>, entries: &mut Vec<Result<Entry<'o>>>) {
        entries.push(match operation {
            Op::Get { key } | Op::CompareAndSet { key, expected: None, new: None, .. } => get_of(key),
            Op::Set { key, value, ttl, when } => self.set_of(key, value.clone(), *ttl, (*when).into()),
            Op::Delete { key } => delete_of(key),
            Op::CompareAndSet { key, expected: None, new: Some(value), ttl } => {
                self.set_of(key, value.clone(), *ttl, Condition::IfAbsent)
            }
            Op::CompareAndSet { key, expected: Some(_), new, ttl } => {
                self.check_new(key, new.as_ref(), *ttl).and_then(|()| get_with_cas_of(key))
            }
            Op::Settle(settle) => get_with_cas_of(settle.lease),
        });
        if let Op::Settle(Settle { key, store: Some(Replacement { value, ttl, .. }), .. }) = operation {
            entries.push(self.check_new(key, Some(value), *ttl).and_then(|()| get_with_cas_of(key)));
        }
    }

    fn check_new(&self, key: &str, new: Option<&Bytes>, ttl: Ttl) -> Result<()> {
        let Some(value) = new else { return Ok(()) };
        self.check_value(key, value)?;
        expiry(ttl).map(|_| ())
    }

    async fn finish(&self, operation: &Op<'_>, step: Step, written: &[Result<Answer>]) -> Result<Outcome> {
        match (operation, step) {
            // The reply to a text `get` does not distinguish an empty value from a placeholder for one.
            (Op::Get { key }, Step::Known(Ok(Outcome::Value(Some(value))))) if value.is_empty() => {
                self.get(key).await.map(Outcome::Value)
            }
            (_, Step::Known(outcome)) => outcome,
            (Op::CompareAndSet { key, expected, new, ttl }, Step::Swap { at }) => match written[at].clone()? {
                // The version has changed, perhaps by a touch or a write of the same value.
                Answer::Changed => self.compare_and_set(key, *expected, new.clone(), *ttl).await.map(Outcome::Done),
                answer => Ok(Outcome::Done(answer == Answer::Done)),
            },
            (Op::Settle(settle), Step::Settle { stored_at, lease_at }) => {
                self.finish_settle(settle, stored_at.map(|at| &written[at]), &written[lease_at]).await
            }
            _ => Err(crate::store::wrong_count()),
        }
    }

    /// Completes a settle. If the lease was lost before the value was stored, the value is removed.
    async fn finish_settle(
        &self,
        settle: &Settle<'_>,
        stored: Option<&Result<Answer>>,
        ended: &Result<Answer>,
    ) -> Result<Outcome> {
        let was_held = match ended {
            Ok(Answer::Done) => Ok(true),
            // The lease has changed: by its holder's heartbeat, or by another process.
            Ok(Answer::Changed) => release(self, settle).await,
            Ok(_) => Ok(false),
            Err(error) => Err(error.clone()),
        };
        let is_stored = matches!(stored, Some(Ok(Answer::Done)));
        // A failed write may have taken effect.
        let may_be_stored = is_stored || matches!(stored, Some(Err(_)));
        if !matches!(was_held, Ok(true))
            && may_be_stored
            && let Some(Replacement { value, .. }) = settle.store
        {
            self.compare_and_set(settle.key, Some(value), None, Ttl::Never).await?;
            self.end_settling(settle).await?;
            return was_held.map(|_| REVOKED);
        }
        if let Some(Err(error)) = stored {
            return Err(error.clone());
        }
        was_held.map(|was_held| Outcome::Settled { was_held, is_stored })
    }
}

/// Returns how many of the operations can be carried out together: those before the first on a key that another of them
/// writes in the second exchange.
fn count_independent(operations: &[Op<'_>]) -> usize {
    let mut unfinished = HashSet::new();
    let position = operations.iter().position(|operation| {
        let lease = if let Op::Settle(settle) = operation { Some(settle.lease) } else { None };
        let keys = [Some(operation.key()), lease];
        if keys.iter().flatten().any(|key| unfinished.contains(key)) {
            return true;
        }
        if matches!(operation, Op::CompareAndSet { expected: Some(_), .. } | Op::Settle(_)) {
            unfinished.extend(keys.into_iter().flatten());
        }
        false
    });
    position.unwrap_or(operations.len())
}

/// Returns the next step of a settle with a value. Without its mark, it does not store the value. The mark is removed
/// by the last write.
fn marked_step<'o>(
    settle: &Settle<'o>,
    settling: &'o SettlingMark,
    answers: &[(usize, Result<Answer>)],
    writes: &mut Writes<'o>,
) -> Step {
    let (server, mark) = &answers[1];
    let mark_cas = match (&answers[0].1, mark) {
        (Err(error), _) | (_, Err(error)) => return Step::Known(Err(error.clone())),
        (Ok(Answer::Done), Ok(Answer::Value { cas, .. })) => Some(*cas),
        (_, Ok(mark)) => {
            // A mark whose process has ended is removed, so that the next settle can add its own.
            if let Some(cas) = SettlingMark::abandoned_cas(mark) {
                writes.push((*server, write_of(&settling.key, None, Condition::IfUnchanged { cas })));
            }
            None
        }
    };
    let allowed = if mark_cas.is_some() { *settle } else { Settle { store: None, ..*settle } };
    let step = next_step(&Op::Settle(allowed), &answers[2..], writes);
    if let Some(cas) = mark_cas {
        writes.push((*server, write_of(&settling.key, None, Condition::IfUnchanged { cas })));
    }
    step
}

/// Returns the next step of an operation, and adds its writes. `answers` begins with the answers to this operation.
fn next_step<'o>(operation: &Op<'o>, answers: &[(usize, Result<Answer>)], writes: &mut Writes<'o>) -> Step {
    let (server, answer) = &answers[0];
    let answer = match answer {
        Ok(answer) => answer.clone(),
        Err(error) => return Step::Known(Err(error.clone())),
    };
    let outcome = match operation {
        Op::Get { .. } => Outcome::Value(value(answer)),
        Op::Set { .. } | Op::Delete { .. } | Op::CompareAndSet { expected: None, new: Some(_), .. } => {
            Outcome::Done(answer == Answer::Done)
        }
        Op::CompareAndSet { expected: None, new: None, .. } => Outcome::Done(answer == Answer::Absent),
        Op::CompareAndSet { key, expected: Some(expected), new, ttl } => match answer {
            Answer::Value { value, cas } if value == *expected => {
                let new = new.clone().map(|value| (value, *ttl));
                writes.push((*server, write_of(key, new, Condition::IfUnchanged { cas })));
                return Step::Swap { at: writes.len() - 1 };
            }
            _ => Outcome::Done(false),
        },
        Op::Settle(settle) => match answer {
            Answer::Value { value, cas } if is_held(Some(&value), settle.token) => {
                let current = settle.store.as_ref().map(|_| &answers[1]);
                return settle_step(settle, current, (*server, cas), writes);
            }
            _ => REVOKED,
        },
    };
    Step::Known(Ok(outcome))
}

/// Returns the next step of a settle whose lease is held, and adds its writes: first the value, if the entry has not
/// changed since it was seen; then the end of the lease.
fn settle_step<'o>(
    settle: &Settle<'o>,
    current: Option<&(usize, Result<Answer>)>,
    (server, lease_cas): (usize, u64),
    writes: &mut Writes<'o>,
) -> Step {
    let mut stored_at = None;
    if let (Some(Replacement { seen, value, ttl }), Some((server, current))) = (settle.store, current) {
        let condition = match (current, seen) {
            (Ok(Answer::Value { value, cas }), Some(seen)) if value == seen => {
                Ok(Some(Condition::IfUnchanged { cas: *cas }))
            }
            (Ok(Answer::Absent), _) => Ok(Some(Condition::IfAbsent)),
            (Ok(_), _) => Ok(None),
            (Err(error), _) => Err(error.clone()),
        };
        let write = condition.map(|condition| condition.map(|condition| (condition, (value.clone(), ttl))));
        if let Some(entry) = write.transpose() {
            let entry = entry.and_then(|(condition, new)| write_of(settle.key, Some(new), condition));
            writes.push((*server, entry));
            stored_at = Some(writes.len() - 1);
        }
    }
    let mark = settle.mark.map(|(mark, ttl)| (Bytes::copy_from_slice(mark), ttl));
    writes.push((server, write_of(settle.lease, mark, Condition::IfUnchanged { cas: lease_cas })));
    Step::Settle { stored_at, lease_at: writes.len() - 1 }
}

fn get_with_cas_of(key: &str) -> Result<Entry<'_>> {
    Ok(Entry { key: Key::new(key)?, command: Command::GetWithCas })
}

/// Returns a set, or a delete if there is no new value.
fn write_of(key: &str, new: Option<(Bytes, Ttl)>, condition: Condition) -> Result<Entry<'_>> {
    let command = match (new, condition) {
        (Some((value, ttl)), condition) => Command::Set { value, expiry: expiry(ttl)?, condition },
        (None, Condition::IfUnchanged { cas }) => Command::Delete { cas: Some(cas) },
        (None, _) => Command::Delete { cas: None },
    };
    Ok(Entry { key: Key::new(key)?, command })
}

impl From<When> for Condition {
    fn from(when: When) -> Condition {
        match when {
            When::Always => Condition::Always,
            When::IfAbsent => Condition::IfAbsent,
            When::IfPresent => Condition::IfPresent,
        }
    }
}
