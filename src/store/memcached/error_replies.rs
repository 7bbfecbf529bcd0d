//! What Memcached says when it refuses, and what that means.
//!
//! None of it counts as a failure of the server: one that answers is up. Only where it lets no connection in it is left
//! alone like one that is down.

use crate::error::ErrorKind::{self, Auth, NotANumber, Protocol, Server, Unsupported, ValueTooLarge};
use crate::store::error_reply::Connection::{self, GivenUp, Kept};
use crate::store::error_reply::ErrorReply;
use crate::store::error_reply::Lasts::{self, Briefly, OnAndOn};

/// What stands in the place of a value that was not kept.
pub(super) const LARGER_THAN_ALLOWED: &str = "its value is larger than max_value";

/// What an error reply contains. The first line that fits counts.
const TABLE: &[(&str, ErrorKind, Lasts, Connection)] = &[
    ("too large", ValueTooLarge, OnAndOn, Kept),
    (LARGER_THAN_ALLOWED, ValueTooLarge, OnAndOn, Kept),
    ("out of memory", Server, Briefly, Kept),
    ("Too many open connections", Server, Briefly, GivenUp),
    ("unauthenticated", Auth, OnAndOn, GivenUp),
    ("authentication failure", Auth, OnAndOn, GivenUp),
    ("non-numeric", NotANumber, OnAndOn, Kept),
    ("bad data chunk", Protocol, Briefly, GivenUp),
    // Of a proxy, about the server behind it.
    ("SERVER_ERROR", Server, Briefly, Kept),
    ("CLIENT_ERROR", Server, OnAndOn, Kept),
];

const ANY_OTHER: ErrorReply = ErrorReply { kind: Unsupported, lasts: OnAndOn, connection: Kept };

pub(super) fn refusal(text: &str) -> ErrorReply {
    let fits = |(part, ..): &&(&str, ErrorKind, Lasts, Connection)| text.contains(part);
    TABLE.iter().find(fits).map_or(ANY_OTHER, |&(_, kind, lasts, connection)| ErrorReply { kind, lasts, connection })
}
