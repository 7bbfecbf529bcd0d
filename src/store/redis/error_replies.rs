//! The error replies of Redis and their meaning.
//!
//! An error reply does not count as a failure of the server: a server that responds is up. The exceptions are replies
//! that refuse a new connection, such as those to a login: after some of them the server is not dialled for a while.

use std::borrow::Cow;

use redis::ServerError;

use crate::error::ErrorKind::{self, Auth, Protocol, Server, Unsupported, ValueTooLarge};
use crate::store::error_reply::Connection::{self, AllGivenUp, GivenUp, Kept};
use crate::store::error_reply::ErrorReply;
use crate::store::error_reply::Lasts::{self, Briefly, OnAndOn};

/// The code that an error reply begins with, a part of the message that follows, and their meaning. The first matching
/// line is used.
const TABLE: &[(&str, &str, ErrorKind, Lasts, Connection)] = &[
    ("READONLY", "", Server, Briefly, AllGivenUp),
    ("MASTERDOWN", "", Server, Briefly, AllGivenUp),
    ("LOADING", "", Server, Briefly, Kept),
    ("BUSY", "", Server, Briefly, Kept),
    ("OOM", "", Server, Briefly, Kept),
    ("MISCONF", "", Server, Briefly, Kept),
    ("NOREPLICAS", "", Server, Briefly, Kept),
    ("TRYAGAIN", "", Server, Briefly, Kept),
    ("CLUSTERDOWN", "", Server, Briefly, Kept),
    ("MOVED", "", Unsupported, OnAndOn, Kept),
    ("ASK", "", Unsupported, OnAndOn, Kept),
    ("CROSSSLOT", "", Unsupported, OnAndOn, Kept),
    ("NOAUTH", "", Auth, OnAndOn, GivenUp),
    ("WRONGPASS", "", Auth, OnAndOn, GivenUp),
    ("DENIED", "", Auth, OnAndOn, GivenUp),
    ("NOPERM", "", Unsupported, OnAndOn, Kept),
    ("TOOLARGE", "", ValueTooLarge, OnAndOn, Kept),
    ("NOPROTO", "", Unsupported, OnAndOn, Kept),
    ("SHUTDOWN", "", Server, Briefly, GivenUp),
    ("ERR", "-READONLY", Server, Briefly, AllGivenUp),
    ("ERR", "user executing the script", Unsupported, OnAndOn, Kept),
    ("ERR", "max number of clients", Server, Briefly, GivenUp),
    ("ERR", "server is closing", Server, Briefly, GivenUp),
    ("ERR", "shutting down", Server, Briefly, GivenUp),
    ("ERR", "upstream", Server, Briefly, Kept),
    ("ERR", "DB index is out of range", Unsupported, OnAndOn, GivenUp),
    ("ERR", "invalid DB index", Unsupported, OnAndOn, GivenUp),
    ("ERR", "invalid password", Auth, OnAndOn, GivenUp),
    ("ERR", "invalid username-password pair", Auth, OnAndOn, GivenUp),
    ("ERR", "without any password configured", Auth, OnAndOn, GivenUp),
    ("ERR", "no password is set", Auth, OnAndOn, GivenUp),
    ("ERR", "invalid bulk length", ValueTooLarge, OnAndOn, GivenUp),
    ("ERR", "exceeds maximum allowed size", ValueTooLarge, OnAndOn, Kept),
    ("ERR", "Protocol error", Protocol, Briefly, GivenUp),
    ("ERR", "cluster support disabled", Unsupported, OnAndOn, Kept),
    ("ERR", "unknown command", Unsupported, OnAndOn, Kept),
    ("ERR", "unsupported command", Unsupported, OnAndOn, Kept),
];

const ANY_OTHER: ErrorReply = ErrorReply { kind: Server, lasts: OnAndOn, connection: Kept };

pub(super) fn classify(error: &ServerError) -> ErrorReply {
    let details = error.details().unwrap_or_default();
    // The server may repeat the arguments of a command. They are not part of the message.
    let details = details.split_once(", with args").map_or(details, |(unrepeated, _)| unrepeated);
    let (said, text) = match error.code() {
        // The reply of a proxy may have no code. Then this is the first word of the message.
        word if word.contains(|char: char| char.is_ascii_lowercase()) => ("ERR", format!("{word} {details}").into()),
        code => (code, Cow::from(details)),
    };
    let fits = |(code, part, ..): &&(&str, &str, ErrorKind, Lasts, Connection)| *code == said && contains(&text, part);
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
    use crate::store::error_reply::Lasts;

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
        assert_eq!((unknown.kind, unknown.lasts), (ErrorKind::Unsupported, Lasts::OnAndOn));
        let unknown = said("ERR unknown command 'GETDEL', with args beginning with: 'upstream', 'invalid password' ");
        assert_eq!((unknown.kind, unknown.lasts), (ErrorKind::Unsupported, Lasts::OnAndOn));
    }
}
