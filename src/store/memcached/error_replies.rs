//! The error replies of Memcached, and their meaning.
//!
//! An error reply does not count as a failure of the server: a server that responds is up. The exception is a refused
//! connection, after which the server is treated as down.

use crate::error::ErrorKind::{self, Auth, NotANumber, Protocol, Server, Unsupported, ValueTooLarge};
use crate::store::error_reply::Connection::{self, Closed, Kept};
use crate::store::error_reply::ErrorReply;
use crate::store::error_reply::Persistence::{self, Permanent, Transient};

/// The error text of a value that was not read because it is too large.
pub(super) const LARGER_THAN_ALLOWED: &str = "its value is larger than max_value";

/// The meaning of an error reply that contains a string. The first row that matches counts.
const TABLE: &[(&str, ErrorKind, Persistence, Connection)] = &[
    ("too large", ValueTooLarge, Permanent, Kept),
    (LARGER_THAN_ALLOWED, ValueTooLarge, Permanent, Kept),
    ("out of memory", Server, Transient, Kept),
    ("Too many open connections", Server, Transient, Closed),
    ("unauthenticated", Auth, Permanent, Closed),
    ("authentication failure", Auth, Permanent, Closed),
    ("non-numeric", NotANumber, Permanent, Kept),
    ("bad data chunk", Protocol, Transient, Closed),
    // A proxy sends it about the server behind it.
    ("SERVER_ERROR", Server, Transient, Kept),
    ("CLIENT_ERROR", Server, Permanent, Kept),
];

const ANY_OTHER: ErrorReply = ErrorReply { kind: Unsupported, lasts: Permanent, connection: Kept };

pub(super) fn refusal(text: &str) -> ErrorReply {
    let matches = |(part, ..): &&(&str, ErrorKind, Persistence, Connection)| text.contains(part);
    TABLE.iter().find(matches).map_or(ANY_OTHER, |&(_, kind, lasts, connection)| ErrorReply { kind, lasts, connection })
}
