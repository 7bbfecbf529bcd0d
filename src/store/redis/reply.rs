//! Conversion of replies to values and errors.

use bytes::Bytes;
use redis::{ServerError, Value};

use super::error_replies::classify;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::store::credentials::Credentials;
use crate::store::error_reply::{ErrorReply, Persistence};
use crate::store::{counter_overflow, not_a_number};

/// A reply that is not an error.
pub(super) struct Reply<'a> {
    value: Value,
    endpoint: &'a Endpoint,
}

impl<'a> Reply<'a> {
    pub(super) fn new(value: Value, endpoint: &'a Endpoint) -> Result<Reply<'a>> {
        match value {
            Value::ServerError(error) => Err(server_error(endpoint, &error)),
            Value::Attribute { data, .. } => Reply::new(*data, endpoint),
            value => Ok(Reply { value, endpoint }),
        }
    }

    /// Returns the value in a reply. A key of another type than a string has no value, like in the reply of MGET.
    pub(super) fn read(value: Value, endpoint: &'a Endpoint) -> Result<Option<Bytes>> {
        match value {
            Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(None),
            value => Reply::new(value, endpoint)?.bytes(),
        }
    }

    fn bytes(self) -> Result<Option<Bytes>> {
        match self.value {
            Value::Nil => Ok(None),
            Value::BulkString(bytes) => Ok(Some(bytes.into())),
            _ => Err(self.unexpected("a value")),
        }
    }

    /// Returns whether a SET has stored its value.
    pub(super) fn stored(self) -> Result<bool> {
        match self.value {
            Value::Okay => Ok(true),
            Value::Nil => Ok(false),
            _ => Err(self.unexpected("OK")),
        }
    }

    pub(super) fn number(self) -> Result<i64> {
        match self.value {
            Value::Int(number) => Ok(number),
            _ => Err(self.unexpected("a number")),
        }
    }

    pub(super) fn flag(self) -> Result<bool> {
        self.number().map(|number| number != 0)
    }

    pub(super) fn array(self) -> Result<Vec<Value>> {
        match self.value {
            Value::Array(values) => Ok(values),
            _ => Err(self.unexpected("an array")),
        }
    }

    /// Returns the next cursor and the keys of a step of SCAN.
    pub(super) fn scanned(self) -> Result<(u64, Vec<Vec<u8>>)> {
        let endpoint = self.endpoint;
        let unexpected = || unexpected(endpoint, "a cursor and keys");
        let [Value::BulkString(cursor), Value::Array(keys)] =
            <[Value; 2]>::try_from(self.array()?).map_err(|_| unexpected())?
        else {
            return Err(unexpected());
        };
        let cursor = std::str::from_utf8(&cursor).ok().and_then(|cursor| cursor.parse().ok()).ok_or_else(unexpected)?;
        let keys = keys.into_iter().map(|key| match key {
            Value::BulkString(key) => Ok(key),
            _ => Err(unexpected()),
        });
        Ok((cursor, keys.collect::<Result<_>>()?))
    }

    fn unexpected(&self, wanted: &str) -> Error {
        unexpected(self.endpoint, wanted)
    }
}

pub(super) fn unexpected(endpoint: &Endpoint, wanted: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("{endpoint} sent a reply that is not {wanted}"))
}

/// Returns the errors among replies, with those among the replies of a transaction.
#[inline]
pub(super) fn errors(replies: &[Value]) -> impl Iterator<Item = &ServerError> {
    fn inner(reply: &Value) -> &[Value] {
        if let Value::Array(replies) = reply { replies } else { std::slice::from_ref(reply) }
    }
    // Most replies are neither, and are skipped without an inner iterator.
    let some = replies.iter().filter(|reply| matches!(reply, Value::Array(_) | Value::ServerError(_)));
    some.flat_map(inner).filter_map(|reply| match reply {
        Value::ServerError(error) => Some(error),
        _ => None,
    })
}

/// Returns the kind of the first error among replies.
pub(super) fn failure(replies: &[Value]) -> Option<ErrorKind> {
    errors(replies).next().map(|error| classify(error).kind)
}

pub(super) fn server_error(endpoint: &Endpoint, error: &ServerError) -> Error {
    error_with(endpoint, classify(error), error, error.details().unwrap_or_default())
}

/// Converts an error reply to a greeting. A server that does not know a command may repeat its arguments, with the
/// password. That part is left out.
pub(super) fn greeting_error(endpoint: &Endpoint, login: Option<&Credentials>, error: &ServerError) -> Error {
    error_with(endpoint, classify(error), error, without_password(login, error))
}

/// Converts an error reply to AUTH, like [`greeting_error`]. Unless the error is transient, its kind is
/// [`ErrorKind::Auth`].
pub(super) fn login_error(endpoint: &Endpoint, login: &Credentials, error: &ServerError) -> Error {
    let meaning = classify(error);
    let meaning =
        if meaning.lasts == Persistence::Transient { meaning } else { ErrorReply { kind: ErrorKind::Auth, ..meaning } };
    error_with(endpoint, meaning, error, without_password(Some(login), error))
}

fn without_password<'e>(login: Option<&Credentials>, error: &'e ServerError) -> &'e str {
    let details = error.details().unwrap_or_default();
    let details = details.split_once(", with args").map_or(details, |(unrepeated, _)| unrepeated);
    if login.is_some_and(|login| login.are_shown_in(details)) { "" } else { details }
}

fn error_with(endpoint: &Endpoint, meaning: ErrorReply, error: &ServerError, details: &str) -> Error {
    if error.code() == "TOOLARGE" {
        return meaning.error(format!("{endpoint} sent a value that is larger than max_value"));
    }
    let answered = format!("{endpoint} answered {} {details}", error.code());
    match error.code() {
        "MOVED" | "ASK" | "CROSSSLOT" => {
            meaning.error(format!("{answered}: it is a node of a cluster, whose URL is redis+cluster://"))
        }
        _ => meaning.error(answered.trim_end()),
    }
}

/// Returns the string in a reply, of any of the types that a server may use for it.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

pub(super) fn is_unknown_script(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == "NOSCRIPT")
}

/// Converts the server's error for a counter to the error that all stores return.
pub(super) fn counter_error(key: &str, by: i64, error: Error) -> Error {
    let text = error.to_string();
    if text.contains("not an integer") {
        not_a_number(key)
    } else if text.contains("overflow") {
        counter_overflow(key, by)
    } else {
        error
    }
}
