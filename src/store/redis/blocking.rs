//! The way of a request over a blocking connection: packed by the redis crate, sent and received by us, parsed by the crate.

use std::io::{self, Read};

use redis::{Cmd, Parser, Value, cmd};

use super::commands::Request;
use super::config::Login;
use super::reply::{greeting_error, login_error, server_error};
use super::tally::Tally;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Endpoint, Protocol, Stream, io_error};

/// Redis's serialization protocol, over blocking streams.
#[derive(Debug)]
pub(super) struct Resp {
    endpoint: Endpoint,
    login: Login,
}

pub(super) struct Connection {
    stream: Stream,
    parser: Parser,
    arrived: Tally,
    /// Replies that were parsed.
    parsed: u64,
    /// What is sent, kept for its memory.
    outgoing: Vec<u8>,
}

/// What a kept buffer may take.
const KEPT: usize = 64 << 10;

impl Connection {
    fn over(stream: Stream) -> Connection {
        Connection { stream, parser: Parser::new(), arrived: Tally::default(), parsed: 0, outgoing: Vec::new() }
    }
}

impl Resp {
    pub(super) fn new(endpoint: Endpoint, login: Login) -> Resp {
        Resp { endpoint, login }
    }

    async fn write(&self, connection: &mut Connection, request: &Request) -> Result<()> {
        request.write(&mut connection.outgoing);
        let sent = connection.stream.write_all(&connection.outgoing).await;
        connection.outgoing.clear();
        connection.outgoing.shrink_to(KEPT);
        sent.map_err(|error| io_error("writing to", &self.endpoint, error))
    }

    fn read(&self, connection: &mut Connection) -> Result<Value> {
        loop {
            let mut source = Source { stream: &mut connection.stream, arrived: &mut connection.arrived, failure: None };
            match connection.parser.parse_value(&mut source) {
                // Not a reply: something that the server says unasked.
                Ok(Value::Push { .. }) => {}
                Ok(value) => {
                    connection.parsed += 1;
                    return Ok(value);
                }
                Err(error) => return Err(self.reading(source.failure, error)),
            }
        }
    }

    /// Why the server refused to read on, if it said so: a value that is larger than it takes, say.
    fn said_before_it_hung_up(&self, connection: &mut Connection) -> Option<Error> {
        match self.read(connection) {
            Ok(Value::ServerError(error)) => Some(server_error(&self.endpoint, &error)),
            _ => None,
        }
    }

    fn reading(&self, failure: Option<io::Error>, error: redis::RedisError) -> Error {
        match failure {
            Some(failure) => io_error("reading from", &self.endpoint, failure),
            None => Error::with_source(ErrorKind::Protocol, format!("{} sent what is no reply", self.endpoint), error),
        }
    }

    /// An answer that can be done without, or the connection cannot.
    async fn ask(&self, connection: &mut Connection, command: Cmd) -> Result<Result<Value, redis::ServerError>> {
        self.write(connection, &Request::Command(command)).await?;
        Ok(match self.read(connection)? {
            Value::ServerError(error) => Err(error),
            value => Ok(value),
        })
    }

    /// RESP3 where the server knows it, with user and password.
    async fn greet(&self, connection: &mut Connection) -> Result<()> {
        let mut hello = cmd("HELLO");
        hello.arg(3);
        if let Some(password) = &self.login.password {
            hello.arg("AUTH").arg(self.login.username.as_deref().unwrap_or("default")).arg(password);
        }
        match self.ask(connection, hello).await? {
            Ok(_) => return Ok(()),
            Err(error) if knows_only_resp2(error.code(), error.details()) => {}
            Err(error) => return Err(greeting_error(&self.endpoint, &self.login, &error)),
        }
        let Some(password) = &self.login.password else { return Ok(()) };
        let mut auth = cmd("AUTH");
        if let Some(username) = &self.login.username {
            auth.arg(username);
        }
        auth.arg(password);
        let answer = self.ask(connection, auth).await?;
        answer.map(|_| ()).map_err(|error| login_error(&self.endpoint, &self.login, &error))
    }
}

/// Whether this is how a server refuses the HELLO of RESP3.
pub(super) fn knows_only_resp2(code: &str, details: Option<&str>) -> bool {
    let details = details.unwrap_or_default().to_ascii_lowercase();
    code == "NOPROTO" || details.contains("unknown command") || details.contains("unsupported protocol")
}

impl Protocol for Resp {
    type Connection = Connection;
    type Request = Request;
    type Reply = Vec<Value>;

    async fn open(&self, stream: Stream) -> Result<Connection> {
        let mut connection = Connection::over(stream);
        self.greet(&mut connection).await?;
        if self.login.database != 0 {
            let mut select = cmd("SELECT");
            select.arg(self.login.database);
            let answer = self.ask(&mut connection, select).await?;
            answer.map_err(|error| server_error(&self.endpoint, &error))?;
        }
        Ok(connection)
    }

    async fn send(&self, connection: &mut Connection, request: &Request) -> Result<()> {
        let sent = self.write(connection, request).await;
        sent.map_err(|error| self.said_before_it_hung_up(connection).unwrap_or(error))
    }

    async fn receive(&self, connection: &mut Connection, request: &Request) -> Result<Vec<Value>> {
        let mut replies = Vec::with_capacity(request.len());
        for _ in 0..request.len() {
            replies.push(self.read(connection)?);
        }
        if connection.arrived.is_even(connection.parsed) {
            return Ok(replies);
        }
        Err(Error::new(ErrorKind::Protocol, format!("{} sent more than it was asked for", self.endpoint)))
    }

    fn stream(connection: &mut Connection) -> &mut Stream {
        &mut connection.stream
    }
}

/// Reads for the crate's parser, and keeps what went wrong: the parser's own error has only a copy of it.
struct Source<'a> {
    stream: &'a mut Stream,
    arrived: &'a mut Tally,
    failure: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match Read::read(self.stream, buffer) {
            Ok(0) if !buffer.is_empty() => Err(self.fail(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.fail(error)),
            Ok(received) => {
                self.arrived.pass(&buffer[..received]);
                Ok(received)
            }
        }
    }
}

impl Source<'_> {
    fn fail(&mut self, error: io::Error) -> io::Error {
        let kind = error.kind();
        self.failure = Some(error);
        kind.into()
    }
}
