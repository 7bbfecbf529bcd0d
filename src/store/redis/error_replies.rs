//! The error replies of Redis and their meaning.
//!
//! An error reply does not count as a failure of the server: a server that responds is up. The exceptions are replies
//! that refuse a new connection, such as those to a login: after some of them the server is not dialled for a while.

use std::borrow::Cow;

use redis::ServerError;

use crate::error::ErrorKind::{self, Auth, Protocol, Server, Unsupported, ValueTooLarge};
use crate::store::error_reply::Connection::{self, AllClosed, Closed, Kept};
use crate::store::error_reply::ErrorReply;
use crate::store::error_reply::Persistence::{self, Permanent, Transient};

/// The code that an error reply begins with, a part of the message that follows, and their meaning. The first matching
/// line is used.
const TABLE: &[(&str, &str, ErrorKind, Persistence, Connection)] = &[
    ("READONLY", "", Server, Transient, AllClosed),
    ("MASTERDOWN", "", Server, Transient, AllClosed),
    ("LOADING", "", Server, Transient, Kept),
    ("BUSY", "", Server, Transient, Kept),
    ("OOM", "", Server, Transient, Kept),
    ("MISCONF", "", Server, Transient, Kept),
    ("NOREPLICAS", "", Server, Transient, Kept),
    ("TRYAGAIN", "", Server, Transient, Kept),
    ("CLUSTERDOWN", "", Server, Transient, Kept),
    ("MOVED", "", Unsupported, Permanent, Kept),
    ("ASK", "", Unsupported, Permanent, Kept),
    ("CROSSSLOT", "", Unsupported, Permanent, Kept),
    ("NOAUTH", "", Auth, Permanent, Closed),
    ("WRONGPASS", "", Auth, Permanent, Closed),
    ("DENIED", "", Auth, Permanent, Closed),
    ("NOPERM", "", Unsupported, Permanent, Kept),
    ("TOOLARGE", "", ValueTooLarge, Permanent, Kept),
    ("NOPROTO", "", Unsupported, Permanent, Kept),
    ("SHUTDOWN", "", Server, Transient, Closed),
    ("ERR", "-READONLY", Server, Transient, AllClosed),
    ("ERR", "user executing the script", Unsupported, Permanent, Kept),
    ("ERR", "max number of clients", Server, Transient, Closed),
    ("ERR", "server is closing", Server, Transient, Closed),
    ("ERR", "shutting down", Server, Transient, Closed),
    ("ERR", "upstream", Server, Transient, Kept),
    ("ERR", "DB index is out of range", Unsupported, Permanent, Closed),
    ("ERR", "invalid DB index", Unsupported, Permanent, Closed),
    ("ERR", "invalid password", Auth, Permanent, Closed),
    ("ERR", "invalid username-password pair", Auth, Permanent, Closed),
    ("ERR", "without any password configured", Auth, Permanent, Closed),
    ("ERR", "no password is set", Auth, Permanent, Closed),
    ("ERR", "invalid bulk length", ValueTooLarge, Permanent, Closed),
    ("ERR", "exceeds maximum allowed size", ValueTooLarge, Permanent, Kept),
    ("ERR", "Protocol error", Protocol, Transient, Closed),
    ("ERR", "cluster support disabled", Unsupported, Permanent, Kept),
    ("ERR", "unknown command", Unsupported, Permanent, Kept),
    ("ERR", "unsupported command", Unsupported, Permanent, Kept),
];

const ANY_OTHER: ErrorReply = ErrorReply { kind: Server, lasts: Permanent, connection: Kept };

pub(super) fn classify(error: &ServerError) -> ErrorReply {
    let details = error.details().unwrap_or_default();
    // The server may repeat the arguments of a command. They are not part of the message.
    let details = details.split_once(", with args").map_or(details, |(unrepeated, _)| unrepeated);
    let (said, text) = match error.code() {
        // The reply of a proxy may have no code. Then this is the first word of the message.
        word if word.contains(|char: char| char.is_ascii_lowercase()) => ("ERR", format!("{word} {details}").into()),
        code => (code, Cow::from(details)),
    };
    let fits =
        |(code, part, ..): &&(&str, &str, ErrorKind, Persistence, Connection)| *code == said && contains(&text, part);
    TABLE.iter().find(fits).map_or(ANY_OTHER, |&(_, _, kind, lasts, connection)| ErrorReply { kind, lasts, connection })
}

/// Ignores case, which differs between implementations of the server.
fn contains(text: &str, part: &str) -> bool {
    part.is_empty() || text.to_ascii_lowercase().contains(&part.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use redis::{Value, parse_redis_value};

    use super::{ErrorReply, TABLE, classify};
    use crate::error::ErrorKind;
    use crate::store::error_reply::Persistence;

    fn said(line: &str) -> ErrorReply {
        match parse_redis_value(format!("-{line}\r\n").as_bytes()) {
            Ok(Value::ServerError(error)) => classify(&error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_code_is_in_the_documentation() {
        let documented = include_str!("../redis.rs");
        for (code, ..) in TABLE.iter().filter(|(code, ..)| !["ERR", "TOOLARGE"].contains(code)) {
            assert!(documented.contains(&format!("`{code}`")), "{code}");
        }
    }

    #[test]
    fn repeated_arguments_of_a_command_are_ignored() {
        let unknown = said("ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' ");
        assert_eq!((unknown.kind, unknown.lasts), (ErrorKind::Unsupported, Persistence::Permanent));
        let unknown = said("ERR unknown command 'GETDEL', with args beginning with: 'upstream', 'invalid password' ");
        assert_eq!((unknown.kind, unknown.lasts), (ErrorKind::Unsupported, Persistence::Permanent));
    }
}
