//! The replies to commands.

use std::str::FromStr;

use bytes::Bytes;
use memcache::exp::{MetaCommandResult, ReturnCode};

use super::LINE_END;
use super::command::Expected;
use crate::net::Frame;
use crate::store::memcached::error_replies::LARGER_THAN_ALLOWED;

/// The answer to a [`Command`](super::Command).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store::memcached) enum Answer {
    Done,
    Value {
        value: Bytes,
        cas: u64,
    },
    Number(u64),
    /// In seconds; negative if the entry never expires.
    TimeLeft(i64),
    Absent,
    NotStored,
    /// Another client has changed the entry.
    Changed,
}

/// Returns the text of an error reply, or `None` for any other line.
pub(super) fn error_text(line: &[u8]) -> Option<String> {
    let is_error = [&b"ERROR"[..], b"CLIENT_ERROR", b"SERVER_ERROR"]
        .iter()
        .any(|error| line.strip_prefix(*error).is_some_and(|rest| matches!(rest.first(), None | Some(b' '))));
    is_error.then(|| String::from_utf8_lossy(line).into_owned())
}

/// Returns the value of a frame, or the error text of a value that was not kept.
pub(super) fn value_of(mut frame: Frame<'_>, value: &[u8]) -> Result<Bytes, String> {
    if let Some((_, value)) = frame.large.pop() {
        return value.map(Bytes::from).ok_or_else(|| LARGER_THAN_ALLOWED.to_owned());
    }
    Ok(Bytes::copy_from_slice(value.strip_suffix(LINE_END).unwrap_or(value)))
}

/// Returns the answer in a reply, or `None` if the command does not expect such a reply.
pub(super) fn answer(reply: &MetaCommandResult, value: Option<Bytes>, expected: Expected) -> Option<Answer> {
    use Expected::{Deleted, Number, Stored, TimeLeft, Touched, Value, ValueWithCas};
    match (reply.rc, expected) {
        (ReturnCode::Va, Value | ValueWithCas) => {
            let value = value?;
            // The placeholder that another program has stored for a value.
            if value.is_empty() && reply.busy {
                return Some(Answer::Absent);
            }
            let cas = if expected == ValueWithCas { reply.cas? } else { 0 };
            Some(Answer::Value { value, cas })
        }
        (ReturnCode::Va, Number) => parse_number(&value?).map(Answer::Number),
        (ReturnCode::Hd, TimeLeft) => reply.ttl.map(Answer::TimeLeft),
        (ReturnCode::Hd, Touched | Stored | Deleted) => Some(Answer::Done),
        (ReturnCode::En | ReturnCode::Nf, _) => Some(Answer::Absent),
        (ReturnCode::Ns, Stored | Number) => Some(Answer::NotStored),
        (ReturnCode::Ex, Stored | Deleted) => Some(Answer::Changed),
        _ => None,
    }
}

pub(super) fn parse_number<N: FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
