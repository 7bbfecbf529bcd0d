//! What Redis says when it refuses, and what that means.
//!
//! None of it counts as a failure of the server: one that answers is up. Only where it refuses a login, whatever it has
//! against it, it is left alone like one that is down.

use std::borrow::Cow;

use redis::ServerError;

use crate::error::ErrorKind::{self, Auth, Protocol, Server, Unsupported, ValueTooLarge};
use crate::store::error_reply::Connection::{self, AllGivenUp, GivenUp, Kept};
use crate::store::error_reply::ErrorReply;
use crate::store::error_reply::Lasts::{self, Briefly, OnAndOn};

/// The code that an error reply begins with, and a part of what follows. The first line that fits counts.
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

pub(super) fn refusal(error: &ServerError) -> ErrorReply {
    let details = error.details().unwrap_or_default();
    // What the server repeats of a command is no reason.
    let details = details.split_once(", with args").map_or(details, |(unrepeated, _)| unrepeated);
    let (said, text) = match error.code() {
        // A proxy that gives no code: this is the first word of what it says.
        word if word.contains(|char: char| char.is_ascii_lowercase()) => ("ERR", format!("{word} {details}").into()),
        code => (code, Cow::from(details)),
    };
    let fits = |(code, part, ..): &&(&str, &str, ErrorKind, Lasts, Connection)| *code == said && contains(&text, part);
    TABLE.iter().find(fits).map_or(ANY_OTHER, |&(_, _, kind, lasts, connection)| ErrorReply { kind, lasts, connection })
}

/// Whatever the case of the letters: servers of other makes write them in their own way.
fn contains(text: &str, part: &str) -> bool {
    part.is_empty() || text.to_ascii_lowercase().contains(&part.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use redis::{Value, parse_redis_value};

    use super::{ErrorReply, TABLE, refusal};
    use crate::error::ErrorKind;
    use crate::store::error_reply::Lasts;

    fn said(line: &str) -> ErrorReply {
        match parse_redis_value(format!("-{line}\r\n").as_bytes()) {
            Ok(Value::ServerError(error)) => refusal(&error),
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
    fn what_the_server_repeats_of_a_command_is_no_reason() {
        let unknown = said("ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' ");
        assert_eq!((unknown.kind, unknown.lasts), (ErrorKind::Unsupported, Lasts::OnAndOn));
        let unknown = said("ERR unknown command 'GETDEL', with args beginning with: 'upstream', 'invalid password' ");
        assert_eq!((unknown.kind, unknown.lasts), (ErrorKind::Unsupported, Lasts::OnAndOn));
    }
}
