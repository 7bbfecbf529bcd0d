//! Changes that depend on the current entry: compare-and-set, and counters.

use bytes::Bytes;

use super::expiry::expiry;
use super::key::Key;
use super::meta::{Answer, Command, Condition, Create, Step};
use super::servers::{Entry, Servers};
use crate::error::Result;
use crate::net::Retry;
use crate::store::{CONFLICT_ATTEMPTS, Ttl, conflict, counter_overflow};

impl Servers {
    /// Reads the entry, compares it here, and writes if the server's version number (CAS) has not changed since the
    /// read. Both go to the same server, since version numbers of different servers are unrelated.
    pub(super) async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: Option<(Bytes, u32)>,
    ) -> Result<bool> {
        let stored = Key::new(key)?;
        let Some(expected) = expected else { return self.set_if_absent(stored, new).await };
        let read = Entry { key: stored.clone(), command: Command::GetWithCas };
        for _ in 0..CONFLICT_ATTEMPTS {
            let (server, answer) = self.call(&read, Retry::Idempotent).await?;
            let Answer::Value { value, cas } = answer else { return Ok(false) };
            if value != expected {
                return Ok(false);
            }
            let command = match &new {
                Some((value, expiry)) => {
                    Command::Set { value: value.clone(), expiry: *expiry, condition: Condition::IfUnchanged { cas } }
                }
                None => Command::Delete { cas: Some(cas) },
            };
            let written = self.call_on(server, &Entry { key: stored.clone(), command }, Retry::Never).await?;
            // The version has changed, but perhaps not the value: by a touch, or by a client that stored the same
            // value.
            if written != Answer::Changed {
                return Ok(written == Answer::Done);
            }
        }
        Err(conflict("comparing", key))
    }

    async fn set_if_absent(&self, key: Key<'_>, new: Option<(Bytes, u32)>) -> Result<bool> {
        let Some((value, expiry)) = new else {
            let (_, answer) = self.call(&Entry { key, command: Command::Get }, Retry::Idempotent).await?;
            return Ok(answer == Answer::Absent);
        };
        let command = Command::Set { value, expiry, condition: Condition::IfAbsent };
        let (_, answer) = self.call(&Entry { key, command }, Retry::Never).await?;
        Ok(answer == Answer::Done)
    }

    /// Adds to a counter. The server counts in unsigned 64 bits. If the sum exceeds `i64::MAX` or has wrapped around,
    /// the amount is subtracted again.
    pub(super) async fn increment(&self, key: &str, by: i64, ttl: Ttl) -> Result<i64> {
        let stored = Key::new(key)?;
        let step = if by < 0 { Step::Down(by.unsigned_abs()) } else { Step::Up(by.unsigned_abs()) };
        let create = Create { initial: by.max(0).unsigned_abs(), expiry: expiry(ttl)? };
        let count = Entry { key: stored.clone(), command: Command::Count { step, create: Some(create) } };
        let (server, answer) = self.call(&count, Retry::Never).await?;
        let Answer::Number(sum) = answer else { return Err(conflict("counting", key)) };
        let has_wrapped = by > 0 && sum < by.unsigned_abs();
        match i64::try_from(sum) {
            Ok(sum) if !has_wrapped => Ok(sum),
            _ => {
                let command = Command::Count { step: Step::Up(by.wrapping_neg().cast_unsigned()), create: None };
                self.call_on(server, &Entry { key: stored, command }, Retry::Never).await?;
                Err(counter_overflow(key, by))
            }
        }
    }
}
