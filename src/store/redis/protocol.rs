//! The protocol of a connection to Redis: the greeting with the login, and the checks of its replies.
//!
//! # Greeting levels
//!
//! Some proxies close a connection when they receive a command that they do not know. So a greeting has levels:
//!
//! | level | `HELLO` | markers that are tried |
//! | --- | --- | --- |
//! | 0 | yes (RESP3) | `ECHO`, then `PING` |
//! | 1 | no (RESP2) | `ECHO`, then `PING` |
//! | 2 | no | `PING` |
//! | 3 | no | none |
//!
//! If the server hangs up during a greeting, the next greeting uses the next level, or, after the last one, the level
//! that has worked before. A level that works is kept. With the option `protocol=2` the first level is 1. If the server
//! refuses `HELLO` with an error reply that is neither about the login nor transient, the greeting continues with
//! RESP2.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redis::{ServerError, Value};
use smallvec::SmallVec;

use super::commands::{self, Command, Expected, Request};
use super::config::{Access, Version};
use super::error_replies::classify;
use super::reply::{self, greeting_error, login_error, server_error};
use super::resp::{self, RespFraming};
use super::role::expect_master;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{
    Accepted, Address, Connection, Discovery, Frame, Marking, Protocol, Tls, Token, WriteBuffer, foreign_reply_error,
};
use crate::store::credentials::{Credentials, Login};
use crate::store::error_reply::Persistence;
use crate::telemetry;

/// The marker commands, whose reply is their token. Each constant is the command up to the token.
const ECHO: &[u8] = b"*2\r\n$4\r\nECHO\r\n$16\r\n";
const PING: &[u8] = b"*2\r\n$4\r\nPING\r\n$16\r\n";

/// The Redis serialization protocol (RESP), with the settings of a server's connections.
#[derive(Debug)]
pub(super) struct Resp {
    address: Address,
    access: Access,
    /// Whether reads are allowed on a replica of a cluster, by `READONLY`.
    reads_replica: bool,
    /// The level that has worked, and the one to try next.
    level: AtomicUsize,
    next_level: AtomicUsize,
    /// Whether a warning was logged that the server supports no marker.
    has_warned_of_markers: AtomicBool,
    /// Whether a warning was logged that the server's role cannot be checked.
    has_warned_of_role: AtomicBool,
}

/// The commands of a greeting, besides the login.
#[derive(Clone, Copy)]
struct Level {
    has_hello: bool,
    markers: &'static [&'static [u8]],
}

const LEVELS: [Level; 4] = [
    Level { has_hello: true, markers: &[ECHO, PING] },
    Level { has_hello: false, markers: &[ECHO, PING] },
    Level { has_hello: false, markers: &[PING] },
    Level { has_hello: false, markers: &[] },
];

/// The replies to a request, which usually is one command.
pub(super) type Replies = SmallVec<[Value; 1]>;

/// The replies that have arrived so far, and what all of them must be.
pub(super) struct Partial {
    expected: SmallVec<[Expected; 4]>,
    replies: Replies,
}

impl Resp {
    pub(super) fn new(address: Address, access: Access) -> Resp {
        let level = usize::from(access.protocol == Version::Resp2);
        Resp {
            address,
            access,
            reads_replica: false,
            level: AtomicUsize::new(level),
            next_level: AtomicUsize::new(level),
            has_warned_of_markers: AtomicBool::new(false),
            has_warned_of_role: AtomicBool::new(false),
        }
    }

    /// Creates the protocol of connections that are used for one request, without a greeting.
    pub(super) fn without_greeting(endpoint: Endpoint, tls: Option<Tls>) -> Resp {
        let access = Access {
            tls,
            login: Login::None,
            database: 0,
            protocol: Version::default(),
            client_name: None,
            max_value: 0,
        };
        Resp::new(Address::Fixed(endpoint), access)
    }

    /// Allows reads on a replica of a cluster.
    pub(super) fn reading_replica(self) -> Resp {
        Resp { reads_replica: true, ..self }
    }

    pub(super) fn database(&self) -> u32 {
        self.access.database
    }

    /// Sends a command during the greeting. Returns its reply, or the server's error reply.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub(super) async fn ask(
        &self,
        connection: &mut Connection<Resp>,
        command: Command,
    ) -> Result<Result<Value, ServerError>> {
        let mut replies = connection.ask(self, &Request::one(command)).await?;
        Ok(match replies.pop() {
            Some(Value::ServerError(error)) => Err(error),
            reply => Ok(reply.unwrap_or_default()),
        })
    }

    /// Logs in and sets the name of the connection: by `HELLO` for RESP3, or with RESP2 if the server refuses that.
    async fn log_in(
        &self,
        connection: &mut Connection<Resp>,
        login: Option<&Credentials>,
        has_hello: bool,
    ) -> Result<()> {
        let name = self.access.client_name.as_ref().map(|name| format!("{name}-{}", std::process::id()));
        if has_hello {
            let mut hello = Command::new("HELLO", Expected::Anything).with("3");
            if let Some(login) = login {
                hello = hello.with("AUTH").with(login.username().unwrap_or("default")).with(login.secret());
            }
            if let Some(name) = &name {
                hello = hello.with("SETNAME").with(name);
            }
            match self.ask(connection, hello).await? {
                Ok(_) => return Ok(()),
                Err(error) if is_final(&error) => return Err(greeting_error(connection.endpoint(), login, &error)),
                Err(_) => {}
            }
        }
        if let Some(login) = login {
            let auth = Command::new("AUTH", Expected::Anything);
            let auth = login.username().into_iter().fold(auth, Command::with).with(login.secret());
            let answer = self.ask(connection, auth).await?;
            answer.map_err(|error| login_error(connection.endpoint(), login, &error))?;
        }
        if let Some(name) = &name {
            // A server that does not know this command is used without a name.
            let _ = self.ask(connection, Command::new("CLIENT", Expected::Anything).with("SETNAME").with(name)).await?;
        }
        Ok(())
    }
}

/// Returns whether the error reply to HELLO is final: without HELLO the same login would fail, or the error is
/// transient.
fn is_final(error: &ServerError) -> bool {
    let meaning = classify(error);
    meaning.kind == ErrorKind::Auth || meaning.lasts == Persistence::Transient
}

impl Protocol for Resp {
    type Framing = RespFraming;
    type Request = Request;
    type Partial = Partial;
    type Reply = Replies;

    #[inline]
    fn endpoint(&self) -> &Endpoint {
        self.address.endpoint()
    }

    fn discovery(&self) -> Option<&Discovery> {
        self.address.discovery()
    }

    fn tls(&self) -> Option<&Tls> {
        self.access.tls.as_ref()
    }

    fn framing(&self) -> RespFraming {
        RespFraming::default()
    }

    fn max_value(&self) -> usize {
        self.access.max_value
    }

    const LEVELS: usize = LEVELS.len();

    fn level(&self) -> usize {
        self.level.load(Ordering::Relaxed)
    }

    fn next_level(&self) -> usize {
        self.next_level.load(Ordering::Relaxed)
    }

    fn hung_up(&self, level: usize) {
        let next = if level + 1 < LEVELS.len() { level + 1 } else { self.level() };
        self.next_level.store(next, Ordering::Relaxed);
    }

    fn keep_level(&self, level: usize) {
        self.level.store(level, Ordering::Relaxed);
        self.next_level.store(level, Ordering::Relaxed);
    }

    async fn greet(&self, connection: &mut Connection<Resp>, level: usize) -> Result<Marking> {
        let level = LEVELS[level];
        let login = self.access.login.credentials()?;
        let logged_in = self.log_in(connection, login.as_ref(), level.has_hello).await;
        match &login {
            Some(login) => logged_in.map_err(|error| login.hidden_in(connection.endpoint(), error))?,
            None => logged_in?,
        }
        if self.access.database != 0 {
            let select = Command::new("SELECT", Expected::Anything).with_number(self.access.database);
            let answer = self.ask(connection, select).await?;
            answer.map_err(|error| server_error(connection.endpoint(), &error))?;
        }
        if self.reads_replica {
            let answer = self.ask(connection, Command::new("READONLY", Expected::Anything)).await?;
            answer.map_err(|error| server_error(connection.endpoint(), &error))?;
        }
        if level.markers.is_empty() {
            // A check that the server responds. Any reply will do that does not end the connection.
            let answer = self.ask(connection, commands::get("prefork-cache")).await?;
            if let Err(error) = answer
                && classify(&error).closes_connection()
            {
                return Err(server_error(connection.endpoint(), &error));
            }
        }
        if self.discovery().is_some()
            && !expect_master(self, connection).await?
            && !self.has_warned_of_role.swap(true, Ordering::Relaxed)
        {
            telemetry::unchecked_role(connection.endpoint());
        }
        for &command in level.markers {
            let Err(bytes) = connection.try_marker(command).await? else {
                return Ok(Marking::EveryWrite(command));
            };
            match resp::value(Frame { bytes: &bytes, large: Vec::new() }) {
                // The server does not accept this connection.
                Ok(Value::ServerError(error)) if classify(&error).closes_connection() => {
                    return Err(server_error(connection.endpoint(), &error));
                }
                // Transient: the server is busy or loading, so the marker may work later.
                Ok(Value::ServerError(error)) if classify(&error).is_transient() => {
                    return Ok(Marking::EveryWrite(command));
                }
                // Permanent: the server refuses this marker from this account, or from all.
                Ok(Value::ServerError(_)) => {}
                // A proxy that replies to PING itself.
                Ok(Value::SimpleString(pong)) if command == PING && pong == "PONG" => {}
                _ => return Err(foreign_reply_error(connection.endpoint())),
            }
        }
        if !self.has_warned_of_markers.swap(true, Ordering::Relaxed) {
            telemetry::unproven(connection.endpoint());
        }
        Ok(Marking::Impossible)
    }

    fn is_read(request: &Request) -> bool {
        request.is_read()
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

    fn write(&self, request: &Request, outgoing: &mut WriteBuffer) -> Partial {
        let expected = request.write(outgoing);
        Partial { replies: Replies::with_capacity(expected.len()), expected }
    }

    fn accept(&self, partial: &mut Partial, frame: Frame<'_>) -> Result<Accepted> {
        let value = resp::value(frame).map_err(|error| {
            let context = format!("{} sent a reply that cannot be parsed", self.endpoint());
            Error::with_source(ErrorKind::Protocol, context, error)
        })?;
        let expected = partial.expected[partial.replies.len()];
        // If the server refuses MULTI, it executes the commands of the transaction one by one.
        let is_unqueued =
            expected == Expected::Status && matches!(partial.replies.first(), Some(Value::ServerError(_)));
        if !expected.admits(&value) && !is_unqueued {
            return Err(reply::unexpected(self.endpoint(), expected.name()));
        }
        partial.replies.push(value);
        let is_complete = partial.replies.len() == partial.expected.len();
        Ok(if is_complete { Accepted::Complete { proven: false } } else { Accepted::Incomplete })
    }

    fn accept_run(&self, partial: &mut Partial, bytes: &[u8], marker: Option<&Token>) -> (usize, bool) {
        let Partial { expected, replies } = partial;
        let mut taken = 0;
        while expected.get(replies.len()) == Some(&Expected::Value)
            && let Some((value, length)) = resp::short_value(&bytes[taken..])
            && marker.is_none_or(|token| value != token)
        {
            replies.push(Value::BulkString(value.to_vec()));
            taken += length;
        }
        (taken, replies.len() == expected.len())
    }

    fn accept_marker(&self, bytes: &[u8], token: &Token) -> usize {
        match resp::short_value(bytes) {
            Some((value, length)) if value == token => length,
            _ => 0,
        }
    }

    fn refusal(&self, partial: &Partial) -> Option<Error> {
        partial.replies.iter().rev().find_map(|reply| match reply {
            Value::ServerError(error) => Some(server_error(self.endpoint(), error)),
            _ => None,
        })
    }

    fn refused_marker(&self, frame: &Frame<'_>) -> Option<(Error, bool)> {
        match redis::parse_redis_value(frame.bytes) {
            Ok(Value::ServerError(error)) => {
                Some((server_error(self.endpoint(), &error), classify(&error).is_transient()))
            }
            _ => None,
        }
    }

    fn finish(partial: Partial) -> Replies {
        partial.replies
    }

    fn is_last(replies: &Replies) -> bool {
        reply::errors(replies).any(|error| classify(error).closes_connection())
    }

    fn is_replaced(replies: &Replies) -> bool {
        reply::errors(replies).any(|error| classify(error).is_replaced())
    }
}
