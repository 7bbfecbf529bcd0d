//! The error replies of Memcached, and their meaning.
//!
//! An error reply does not count as a failure of the server: a server that responds is up. The exception is a refused
//! connection, after which the server is treated as down.

use crate::error::ErrorKind::{self, Auth, NotANumber, Protocol, Server, Unsupported, ValueTooLarge};
use crate::store::error_reply::Connection::{self, GivenUp, Kept};
use crate::store::error_reply::ErrorReply;
use crate::store::error_reply::Lasts::{self, Briefly, OnAndOn};

/// The error text of a value that was not read because it is too large.
pub(super) const LARGER_THAN_ALLOWED: &str = "its value is larger than max_value";

/// The meaning of an error reply that contains a string. The first row that matches counts.
const TABLE: &[(&str, ErrorKind, Lasts, Connection)] = &[
    ("too large", ValueTooLarge, OnAndOn, Kept),
    (LARGER_THAN_ALLOWED, ValueTooLarge, OnAndOn, Kept),
    ("out of memory", Server, Briefly, Kept),
    ("Too many open connections", Server, Briefly, GivenUp),
    ("unauthenticated", Auth, OnAndOn, GivenUp),
    ("authentication failure", Auth, OnAndOn, GivenUp),
    ("non-numeric", NotANumber, OnAndOn, Kept),
    ("bad data chunk", Protocol, Briefly, GivenUp),
    // A proxy sends it about the server behind it.
    ("SERVER_ERROR", Server, Briefly, Kept),
    ("CLIENT_ERROR", Server, OnAndOn, Kept),
];

const ANY_OTHER: ErrorReply = ErrorReply { kind: Unsupported, lasts: OnAndOn, connection: Kept };

pub(super) fn refusal(text: &str) -> ErrorReply {
    let matches = |(part, ..): &&(&str, ErrorKind, Lasts, Connection)| text.contains(part);
    TABLE.iter().find(matches).map_or(ANY_OTHER, |&(_, kind, lasts, connection)| ErrorReply { kind, lasts, connection })
}
