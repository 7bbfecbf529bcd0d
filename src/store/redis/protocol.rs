//! How a connection to Redis is greeted, and what its replies must be.

use std::sync::atomic::{AtomicBool, Ordering};

use redis::{ServerError, Value};
use smallvec::SmallVec;

use super::commands::{Command, Expected, Request};
use super::config::Config;
use super::reply::{self, greeting_error, login_error, server_error};
use super::resp::{self, RespFraming};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Accepted, Connection, Endpoint, Frame, Marking, Outgoing, Protocol, Tls, foreign};
use crate::store::credentials::{Credentials, Login};
use crate::telemetry;

/// Commands whose answer is the token that they are followed by, each up to the token.
const ECHO: &[u8] = b"*2\r\n$4\r\nECHO\r\n$16\r\n";
const PING: &[u8] = b"*2\r\n$4\r\nPING\r\n$16\r\n";

/// Redis's serialization protocol.
#[derive(Debug)]
pub(super) struct Resp {
    endpoint: Endpoint,
    tls: Option<Tls>,
    login: Login,
    database: u32,
    longest_value: usize,
    /// Whether it was said that replies cannot be proven.
    has_warned: AtomicBool,
}

/// The replies to a request, which is mostly one command.
pub(super) type Replies = SmallVec<[Value; 1]>;

/// Replies of which some are still to come.
pub(super) struct Partial {
    expected: SmallVec<[Expected; 4]>,
    replies: Replies,
}

impl Resp {
    pub(super) fn new(config: Config) -> Resp {
        let Config { endpoint, tls, login, database, max_value, .. } = config;
        Resp { endpoint, tls, login, database, longest_value: max_value, has_warned: AtomicBool::new(false) }
    }

    /// An answer without which the connection is of no use.
    async fn ask(&self, connection: &mut Connection<Resp>, command: Command) -> Result<Result<Value, ServerError>> {
        let mut replies = connection.ask(self, &Request::one(command)).await?;
        Ok(match replies.pop() {
            Some(Value::ServerError(error)) => Err(error),
            reply => Ok(reply.unwrap_or_default()),
        })
    }

    /// RESP3 where the server knows it, with user and password.
    async fn hello(&self, connection: &mut Connection<Resp>, login: Option<&Credentials>) -> Result<()> {
        let mut hello = Command::new("HELLO", Expected::Anything).with("3");
        if let Some(login) = login {
            hello = hello.with("AUTH").with(login.username().unwrap_or("default")).with(login.secret());
        }
        match self.ask(connection, hello).await? {
            Ok(_) => return Ok(()),
            Err(error) if knows_only_resp2(&error) => {}
            Err(error) => return Err(greeting_error(&self.endpoint, login, &error)),
        }
        let Some(login) = login else { return Ok(()) };
        let auth = Command::new("AUTH", Expected::Anything);
        let auth = login.username().into_iter().fold(auth, Command::with).with(login.secret());
        let answer = self.ask(connection, auth).await?;
        answer.map(|_| ()).map_err(|error| login_error(&self.endpoint, login, &error))
    }
}

/// Whether this is how a server refuses the HELLO of RESP3.
fn knows_only_resp2(error: &ServerError) -> bool {
    let details = error.details().unwrap_or_default().to_ascii_lowercase();
    error.code() == "NOPROTO" || details.contains("unknown command") || details.contains("unsupported protocol")
}

/// Whether this is how a server refuses a command for good: to this account, or to everybody.
fn is_withheld(error: &ServerError) -> bool {
    matches!(error.code(), "NOPERM" | "ERR")
}

impl Protocol for Resp {
    type Framing = RespFraming;
    type Request = Request;
    type Partial = Partial;
    type Reply = Replies;

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    fn framing(&self) -> RespFraming {
        RespFraming::new(self.longest_value)
    }

    async fn greet(&self, connection: &mut Connection<Resp>) -> Result<Marking> {
        if let Some(login) = self.login.credentials()? {
            let let_in = self.hello(connection, Some(&login)).await;
            let_in.map_err(|error| login.hidden_in(&self.endpoint, error))?;
        } else {
            self.hello(connection, None).await?;
        }
        if self.database != 0 {
            let select = Command::new("SELECT", Expected::Anything).with_number(self.database);
            let answer = self.ask(connection, select).await?;
            answer.map_err(|error| server_error(&self.endpoint, &error))?;
        }
        for command in [ECHO, PING] {
            let Err(bytes) = connection.try_marker(self, command).await? else {
                return Ok(Marking::EveryWrite(command));
            };
            match resp::value(Frame { bytes: &bytes, large: Vec::new() }) {
                Ok(Value::ServerError(error)) if is_withheld(&error) => {}
                // A proxy that answers for itself.
                Ok(Value::SimpleString(pong)) if command == PING && pong == "PONG" => {}
                // For the moment: it is busy, or loading.
                Ok(Value::ServerError(_)) => return Ok(Marking::EveryWrite(command)),
                _ => return Err(foreign(self)),
            }
        }
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            telemetry::unproven(&self.endpoint);
        }
        Ok(Marking::Impossible)
    }

    fn is_read(request: &Request) -> bool {
        request.expected().all(Expected::is_read)
    }

    fn key(request: &Request) -> &[u8] {
        request.first()
    }

    fn longest_value(replies: &Replies) -> usize {
        fn longest(replies: &[Value]) -> usize {
            let length = |reply: &Value| match reply {
                Value::BulkString(value) => value.len(),
                Value::Array(values) => longest(values),
                _ => 0,
            };
            replies.iter().map(length).max().unwrap_or(0)
        }
        longest(replies)
    }

    fn write(&self, request: &Request, outgoing: &mut Outgoing) -> Partial {
        request.write(outgoing);
        Partial { expected: request.expected().collect(), replies: Replies::new() }
    }

    fn accept(&self, partial: &mut Partial, frame: Frame<'_>) -> Result<Accepted> {
        let value = resp::value(frame).map_err(|error| {
            let context = format!("{} sent a reply that cannot be parsed", self.endpoint);
            Error::with_source(ErrorKind::Protocol, context, error)
        })?;
        let expected = partial.expected[partial.replies.len()];
        // Without its MULTI, the commands of a transaction are carried out one by one.
        let is_alone = expected == Expected::Status && matches!(partial.replies.first(), Some(Value::ServerError(_)));
        if !expected.admits(&value) && !is_alone {
            return Err(reply::unexpected(&self.endpoint, expected.name()));
        }
        partial.replies.push(value);
        let is_complete = partial.replies.len() == partial.expected.len();
        Ok(if is_complete { Accepted::Complete { proven: false } } else { Accepted::Incomplete })
    }

    fn refusal(&self, partial: &Partial) -> Option<Error> {
        partial.replies.iter().rev().find_map(|reply| match reply {
            Value::ServerError(error) => Some(server_error(&self.endpoint, error)),
            _ => None,
        })
    }

    fn refused_marker(&self, frame: &Frame<'_>) -> Option<Error> {
        match redis::parse_redis_value(frame.bytes) {
            Ok(Value::ServerError(error)) => Some(server_error(&self.endpoint, &error)),
            _ => None,
        }
    }

    fn finish(partial: Partial) -> Replies {
        partial.replies
    }
}
