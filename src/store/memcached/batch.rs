//! A batch of operations: one exchange with each server, and a second one for what depends on what is there.
//!
//! A compare-and-set and a settle read in the first exchange, and write in the second by the version number that they
//! have read, on the same server: another one's version numbers mean something else. A settle that stores has a
//! [mark](super::settling) in between, which whoever takes its lease waits for.

use std::collections::HashSet;

use bytes::Bytes;

use super::expiry::expiry;
use super::key::Key;
use super::meta::{Answer, Command, Condition};
use super::servers::Entry;
use super::settling::Settling;
use super::{MemcachedStore, deleting, reading, value};
use crate::error::Result;
use crate::net::Retry;
use crate::store::operation::{is_held, release};
use crate::store::{CacheStore, Op, Outcome, Replacement, Settle, Ttl, When};

const REVOKED: Outcome = Outcome::Settled { was_held: false, is_stored: false };

/// What the first exchange has shown of an operation.
enum Step {
    Known(Result<Outcome>),
    /// The second exchange writes, at this place.
    Swap {
        at: usize,
    },
    Settle {
        stored_at: Option<usize>,
        lease_at: usize,
    },
}

/// The second exchange: entries, each on the server that has shown what it depends on.
type Writes<'o> = Vec<(usize, Result<Entry<'o>>)>;

impl MemcachedStore {
    pub(super) async fn carry_out(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        let mut outcomes = Vec::with_capacity(operations.len());
        while outcomes.len() < operations.len() {
            let rest = &operations[outcomes.len()..];
            outcomes.extend(self.carry_out_together(&rest[..independent(rest)]).await);
        }
        outcomes
    }

    /// Operations none of which has to wait for the second exchange of another.
    async fn carry_out_together(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        let mut entries = Vec::with_capacity(operations.len());
        let mut begins = Vec::with_capacity(operations.len());
        let settling: Vec<Option<Settling>> = operations.iter().map(|operation| Settling::of(operation)).collect();
        for (operation, settling) in operations.iter().zip(&settling) {
            begins.push(entries.len());
            if let (Some(settling), Op::Settle(_)) = (settling, operation) {
                entries.push(self.storing(
                    &settling.key,
                    settling.value.clone(),
                    self.settling_ttl(),
                    Condition::IfAbsent,
                ));
                entries.push(reading_with_cas(&settling.key));
            }
            self.push_first(operation, &mut entries);
            if let (Some(settling), Op::Set { .. }) = (settling, operation) {
                entries.push(reading(&settling.key));
            }
        }
        let retry = if operations.iter().all(Op::is_read) { Retry::Idempotent } else { Retry::Never };
        let answers = self.servers.batch_located(&entries, retry).await;
        let mut writes = Vec::new();
        let mut steps = Vec::with_capacity(operations.len());
        let mut under_way = Vec::new();
        for ((operation, begin), settling) in operations.iter().zip(begins).zip(&settling) {
            let answers = &answers[begin..];
            match (settling, operation) {
                (Some(settling), Op::Settle(settle)) => {
                    steps.push(marked_step(settle, settling, answers, &mut writes));
                    continue;
                }
                (Some(settling), _) => under_way.extend(settling.is_under_way(&answers[1].1)),
                (None, _) => {}
            }
            steps.push(next_step(operation, answers, &mut writes));
        }
        let written = self.servers.batch_on(&writes, Retry::Never).await;
        let mut outcomes = Vec::with_capacity(operations.len());
        for (operation, step) in operations.iter().zip(steps) {
            outcomes.push(self.finish(operation, step, &written).await);
        }
        if !under_way.is_empty() {
            self.until_settled(&under_way).await;
            self.delete_again(&under_way, operations, &mut outcomes).await;
        }
        outcomes
    }

    /// Adds what an operation asks in the first exchange: one entry, or for a settle two.
    fn push_first<'o>(&self, operation: &Op<'o>, entries: &mut Vec<Result<Entry<'o>>>) {
        entries.push(match operation {
            Op::Get { key } | Op::CompareAndSet { key, expected: None, new: None, .. } => reading(key),
            Op::Set { key, value, ttl, when } => self.storing(key, value.clone(), *ttl, (*when).into()),
            Op::Delete { key } => deleting(key),
            Op::CompareAndSet { key, expected: None, new: Some(value), ttl } => {
                self.storing(key, value.clone(), *ttl, Condition::IfAbsent)
            }
            Op::CompareAndSet { key, expected: Some(_), new, ttl } => {
                self.check_new(key, new.as_ref(), *ttl).and_then(|()| reading_with_cas(key))
            }
            Op::Settle(settle) => reading_with_cas(settle.lease),
        });
        if let Op::Settle(Settle { key, store: Some(Replacement { value, ttl, .. }), .. }) = operation {
            entries.push(self.check_new(key, Some(value), *ttl).and_then(|()| reading_with_cas(key)));
        }
    }

    fn check_new(&self, key: &str, new: Option<&Bytes>, ttl: Ttl) -> Result<()> {
        let Some(value) = new else { return Ok(()) };
        self.check_value(key, value)?;
        expiry(ttl).map(|_| ())
    }

    async fn finish(&self, operation: &Op<'_>, step: Step, written: &[Result<Answer>]) -> Result<Outcome> {
        match (operation, step) {
            // A plain reply does not tell an empty value from one that is about to be stored.
            (Op::Get { key }, Step::Known(Ok(Outcome::Value(Some(value))))) if value.is_empty() => {
                self.get(key).await.map(Outcome::Value)
            }
            (_, Step::Known(outcome)) => outcome,
            (Op::CompareAndSet { key, expected, new, ttl }, Step::Swap { at }) => match written[at].clone()? {
                // By a touch perhaps, or by a write of the same value.
                Answer::Changed => self.compare_and_set(key, *expected, new.clone(), *ttl).await.map(Outcome::Done),
                answer => Ok(Outcome::Done(answer == Answer::Done)),
            },
            (Op::Settle(settle), Step::Settle { stored_at, lease_at }) => {
                self.finish_settle(settle, stored_at.map(|at| &written[at]), &written[lease_at]).await
            }
            _ => Err(crate::store::wrong_count()),
        }
    }

    /// What was stored although the lease was lost in the meantime is removed.
    async fn finish_settle(
        &self,
        settle: &Settle<'_>,
        stored: Option<&Result<Answer>>,
        ended: &Result<Answer>,
    ) -> Result<Outcome> {
        let was_held = match ended {
            Ok(Answer::Done) => Ok(true),
            // By its holder's own beat, or by somebody else.
            Ok(Answer::Changed) => release(self, settle).await,
            Ok(_) => Ok(false),
            Err(error) => Err(error.clone()),
        };
        let is_stored = matches!(stored, Some(Ok(Answer::Done)));
        // A write that has failed may have taken effect all the same.
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

/// How many of these go together: up to the first on a key that another of them writes in the second exchange.
fn independent(operations: &[Op<'_>]) -> usize {
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

/// Of a settle that stores: not without its mark, which is removed behind what it stores.
fn marked_step<'o>(
    settle: &Settle<'o>,
    settling: &'o Settling,
    answers: &[(usize, Result<Answer>)],
    writes: &mut Writes<'o>,
) -> Step {
    let (server, mark) = &answers[1];
    let mark_cas = match (&answers[0].1, mark) {
        (Err(error), _) | (_, Err(error)) => return Step::Known(Err(error.clone())),
        (Ok(Answer::Done), Ok(Answer::Value { cas, .. })) => Some(*cas),
        (_, Ok(mark)) => {
            // One that nobody will remove is out of the way of the next.
            if let Some(cas) = Settling::is_left_behind(mark) {
                writes.push((*server, writing(&settling.key, None, Condition::IfUnchanged { cas })));
            }
            None
        }
    };
    let allowed = if mark_cas.is_some() { *settle } else { Settle { store: None, ..*settle } };
    let step = next_step(&Op::Settle(allowed), &answers[2..], writes);
    if let Some(cas) = mark_cas {
        writes.push((*server, writing(&settling.key, None, Condition::IfUnchanged { cas })));
    }
    step
}

/// `answers` begins with those to this operation.
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
                writes.push((*server, writing(key, new, Condition::IfUnchanged { cas })));
                return Step::Swap { at: writes.len() - 1 };
            }
            _ => Outcome::Done(false),
        },
        Op::Settle(settle) => match answer {
            Answer::Value { value, cas } if is_held(Some(&value), settle.token) => {
                let held = settle.store.as_ref().map(|_| &answers[1]);
                return settling(settle, held, (*server, cas), writes);
            }
            _ => REVOKED,
        },
    };
    Step::Known(Ok(outcome))
}

/// First the value is stored, if the entry is as it was seen; then the lease ends.
fn settling<'o>(
    settle: &Settle<'o>,
    held: Option<&(usize, Result<Answer>)>,
    (server, lease_cas): (usize, u64),
    writes: &mut Writes<'o>,
) -> Step {
    let mut stored_at = None;
    if let (Some(Replacement { seen, value, ttl }), Some((server, held))) = (settle.store, held) {
        let condition = match (held, seen) {
            (Ok(Answer::Value { value, cas }), Some(seen)) if value == seen => {
                Ok(Some(Condition::IfUnchanged { cas: *cas }))
            }
            (Ok(Answer::Absent), _) => Ok(Some(Condition::IfAbsent)),
            (Ok(_), _) => Ok(None),
            (Err(error), _) => Err(error.clone()),
        };
        let write = condition.map(|condition| condition.map(|condition| (condition, (value.clone(), ttl))));
        if let Some(entry) = write.transpose() {
            let entry = entry.and_then(|(condition, new)| writing(settle.key, Some(new), condition));
            writes.push((*server, entry));
            stored_at = Some(writes.len() - 1);
        }
    }
    let mark = settle.mark.map(|(mark, ttl)| (Bytes::copy_from_slice(mark), ttl));
    writes.push((server, writing(settle.lease, mark, Condition::IfUnchanged { cas: lease_cas })));
    Step::Settle { stored_at, lease_at: writes.len() - 1 }
}

fn reading_with_cas(key: &str) -> Result<Entry<'_>> {
    Ok(Entry { key: Key::new(key)?, command: Command::GetWithCas })
}

/// A write, or without a value a delete.
fn writing(key: &str, new: Option<(Bytes, Ttl)>, condition: Condition) -> Result<Entry<'_>> {
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
