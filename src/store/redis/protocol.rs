//! How a connection to Redis is greeted, and what its replies must be.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redis::{ServerError, Value};
use smallvec::SmallVec;

use super::commands::{self, Command, Expected, Request};
use super::config::{Access, Version};
use super::error_replies::refusal;
use super::reply::{self, greeting_error, login_error, server_error};
use super::resp::{self, RespFraming};
use super::role::expect_master;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Accepted, Address, Connection, Discovery, Frame, Marking, Protocol, Tls, WriteBuffer, foreign};
use crate::store::credentials::{Credentials, Login};
use crate::store::error_reply::Lasts;
use crate::telemetry;

/// Commands whose answer is the token that they are followed by, each up to the token.
const ECHO: &[u8] = b"*2\r\n$4\r\nECHO\r\n$16\r\n";
const PING: &[u8] = b"*2\r\n$4\r\nPING\r\n$16\r\n";

/// Redis's serialization protocol.
#[derive(Debug)]
pub(super) struct Resp {
    address: Address,
    access: Access,
    /// Whether a replica is to answer for its master.
    reads_replica: bool,
    /// The best level that the server takes part in, and the one to try next.
    level: AtomicUsize,
    next_level: AtomicUsize,
    /// Whether it was said that replies cannot be proven.
    has_warned: AtomicBool,
    /// Whether it was said that nobody knows whether the server is a master.
    has_warned_of_role: AtomicBool,
}

/// What a greeting consists of, besides the login. Some proxies close a connection on which they are sent a command
/// that they do not know.
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

/// The replies to a request, which is mostly one command.
pub(super) type Replies = SmallVec<[Value; 1]>;

/// Replies of which some are still to come.
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
            has_warned: AtomicBool::new(false),
            has_warned_of_role: AtomicBool::new(false),
        }
    }

    /// For single questions, which are asked without a greeting.
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

    /// Of a node of a cluster that answers reads also where it is a replica.
    pub(super) fn reading_replica(self) -> Resp {
        Resp { reads_replica: true, ..self }
    }

    pub(super) fn database(&self) -> u32 {
        self.access.database
    }

    /// An answer without which the connection is of no use.
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

    /// RESP3 where the server knows it, with user, password and name; else RESP2.
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
            // One that does not know it serves as well without.
            let _ = self.ask(connection, Command::new("CLIENT", Expected::Anything).with("SETNAME").with(name)).await?;
        }
        Ok(())
    }
}

/// Whether what HELLO was answered would be answered without it as well: it is about the login, or for the moment.
fn is_final(error: &ServerError) -> bool {
    let refusal = refusal(error);
    refusal.kind == ErrorKind::Auth || refusal.lasts == Lasts::Briefly
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
        let let_in = self.log_in(connection, login.as_ref(), level.has_hello).await;
        match &login {
            Some(login) => let_in.map_err(|error| login.hidden_in(connection.endpoint(), error))?,
            None => let_in?,
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
            // Whatever the answer, if it does not end the connection: there is one.
            let answer = self.ask(connection, commands::get("prefork-cache")).await?;
            if let Err(error) = answer
                && refusal(&error).gives_up()
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
                // It lets nobody in.
                Ok(Value::ServerError(error)) if refusal(&error).gives_up() => {
                    return Err(server_error(connection.endpoint(), &error));
                }
                // For the moment: it is busy, or loading.
                Ok(Value::ServerError(error)) if refusal(&error).is_for_the_moment() => {
                    return Ok(Marking::EveryWrite(command));
                }
                // For good: from this account, or from everybody.
                Ok(Value::ServerError(_)) => {}
                // A proxy that answers for itself.
                Ok(Value::SimpleString(pong)) if command == PING && pong == "PONG" => {}
                _ => return Err(foreign(connection.endpoint())),
            }
        }
        if !self.has_warned.swap(true, Ordering::Relaxed) {
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
        // Without its MULTI, the commands of a transaction are carried out one by one.
        let is_alone = expected == Expected::Status && matches!(partial.replies.first(), Some(Value::ServerError(_)));
        if !expected.admits(&value) && !is_alone {
            return Err(reply::unexpected(self.endpoint(), expected.name()));
        }
        partial.replies.push(value);
        let is_complete = partial.replies.len() == partial.expected.len();
        Ok(if is_complete { Accepted::Complete { proven: false } } else { Accepted::Incomplete })
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
                Some((server_error(self.endpoint(), &error), refusal(&error).is_for_the_moment()))
            }
            _ => None,
        }
    }

    fn finish(partial: Partial) -> Replies {
        partial.replies
    }

    fn is_last(replies: &Replies) -> bool {
        reply::errors(replies).any(|error| refusal(error).gives_up())
    }

    fn is_replaced(replies: &Replies) -> bool {
        reply::errors(replies).any(|error| refusal(error).is_left())
    }
}
