//! Commands and replies: the meta protocol, and the text protocol's `get` for many plain keys at once.
//!
//! Every meta command carries a token of its own, which its reply repeats: a late reply to something else cannot be
//! taken for it. A text `get` always follows a meta command in its exchange, so what comes after that one's reply is
//! its own.
//!
//! The memcache crate's wire layer, which calls itself experimental, is used in this file only.

use std::ops::Range;
use std::str::FromStr;

use bytes::Bytes;
use memcache::exp::{
    ArithmeticMode, ArithmeticOptions, DeleteOptions, Error as WireError, GetOptions, MetaCommand, MetaCommandResult,
    MetaResponse, ReturnCode, SetMode, SetOptions, build_arithmetic, build_delete, build_get, build_noop, build_set,
    parse_meta_result,
};

use super::connection::{Connection, Failure, malformed};
use super::key::Key;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Endpoint, Protocol, Stream};

/// More than a value can have: what the largest server can be configured to take.
const LARGEST_VALUE: usize = 1 << 30;
/// How much of a reply that cannot be understood is repeated in an error.
const SHOWN: usize = 80;

/// What a server is asked to do with one key.
#[derive(Debug)]
pub(super) enum Command {
    Get,
    GetWithCas,
    Touch { expiry: u32 },
    Set { value: Bytes, expiry: u32, condition: Condition },
    Delete { cas: Option<u64> },
    Count { step: Step, create: Option<Create> },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    Always,
    IfAbsent,
    IfPresent,
    IfUnchanged { cas: u64 },
}

/// By how much a counter changes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Modulo 2^64.
    Up(u64),
    /// Down to 0.
    Down(u64),
}

/// What becomes of a counter that does not exist.
#[derive(Clone, Copy, Debug)]
pub(super) struct Create {
    pub(super) initial: u64,
    pub(super) expiry: u32,
}

/// What a server answers to a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Value {
        value: Bytes,
        cas: u64,
    },
    Number(u64),
    Absent,
    NotStored,
    /// Somebody else has changed the entry.
    Changed,
}

/// The commands of one exchange.
#[derive(Debug, Default)]
pub(super) struct Request {
    bytes: Vec<u8>,
    awaited: Vec<Awaited>,
}

#[derive(Debug)]
enum Awaited {
    Reply {
        token: u64,
        expected: Expected,
    },
    /// To a text `get` of the keys in these parts of the request.
    Values(Vec<Range<usize>>),
    Noop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Value,
    ValueWithCas,
    Touched,
    Stored,
    Deleted,
    Number,
}

impl Request {
    /// Has the server answer, and do nothing.
    pub(super) fn probe() -> Result<Request> {
        let mut request = Request::default();
        encode(build_noop(), &mut request.bytes)?;
        request.awaited.push(Awaited::Noop);
        Ok(request)
    }

    /// Adds a command. `token` must be one that the server has not seen on this connection.
    pub(super) fn push(&mut self, key: &Key<'_>, command: &Command, token: u64) -> Result<()> {
        if matches!(command, Command::Get) && !key.is_base64() && !self.awaited.is_empty() {
            self.push_text_get(key);
            return Ok(());
        }
        let expected = command.expected();
        let built = command.build(key.wire(), token).map_err(refused_here)?;
        encode(if key.is_base64() { built.flag("b") } else { built }, &mut self.bytes)?;
        self.awaited.push(Awaited::Reply { token, expected });
        Ok(())
    }

    /// Continues the `get` before, if that is what the request ends with.
    fn push_text_get(&mut self, key: &Key<'_>) {
        if let Some(Awaited::Values(_)) = self.awaited.last() {
            self.bytes.truncate(self.bytes.len() - 2);
        } else {
            self.bytes.extend_from_slice(b"get");
            self.awaited.push(Awaited::Values(Vec::new()));
        }
        let start = self.bytes.len() + 1;
        self.bytes.push(b' ');
        self.bytes.extend_from_slice(key.wire());
        if let Some(Awaited::Values(keys)) = self.awaited.last_mut() {
            keys.push(start..self.bytes.len());
        }
        self.bytes.extend_from_slice(b"\r\n");
    }
}

impl Command {
    /// About how many bytes it is on the wire, besides its key.
    pub(super) fn size(&self) -> usize {
        const LINE: usize = 64;
        match self {
            Command::Set { value, .. } => LINE + value.len(),
            _ => LINE,
        }
    }

    /// What the text protocol calls it.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Command::Get => "get",
            Command::GetWithCas => "gets",
            Command::Touch { .. } => "touch",
            Command::Set { condition: Condition::Always, .. } => "set",
            Command::Set { condition: Condition::IfAbsent, .. } => "add",
            Command::Set { condition: Condition::IfPresent, .. } => "replace",
            Command::Set { condition: Condition::IfUnchanged { .. }, .. } => "cas",
            Command::Delete { .. } => "delete",
            Command::Count { step: Step::Up(_), .. } => "incr",
            Command::Count { step: Step::Down(_), .. } => "decr",
        }
    }

    fn expected(&self) -> Expected {
        match self {
            Command::Get => Expected::Value,
            Command::GetWithCas => Expected::ValueWithCas,
            Command::Touch { .. } => Expected::Touched,
            Command::Set { .. } => Expected::Stored,
            Command::Delete { .. } => Expected::Deleted,
            Command::Count { .. } => Expected::Number,
        }
    }

    fn build(&self, key: &[u8], token: u64) -> Result<MetaCommand, WireError> {
        let opaque = Some(token.to_string().into_bytes());
        match self {
            Command::Get | Command::GetWithCas => {
                let mut options = GetOptions::default();
                options.return_cas = matches!(self, Command::GetWithCas);
                options.opaque = opaque;
                build_get(key, &options)
            }
            Command::Touch { expiry } => {
                let mut options = GetOptions::default();
                options.value = false;
                options.touch = Some(*expiry);
                options.opaque = opaque;
                build_get(key, &options)
            }
            Command::Set { value, expiry, condition } => {
                let mut options = SetOptions::default();
                options.ttl = Some(*expiry);
                options.opaque = opaque;
                match condition {
                    Condition::Always => {}
                    Condition::IfAbsent => options.mode = SetMode::Add,
                    Condition::IfPresent => options.mode = SetMode::Replace,
                    Condition::IfUnchanged { cas } => options.compare_cas = Some(*cas),
                }
                build_set(key, value.clone(), &options)
            }
            Command::Delete { cas } => {
                let mut options = DeleteOptions::default();
                options.compare_cas = *cas;
                options.opaque = opaque;
                build_delete(key, &options)
            }
            Command::Count { step, create } => {
                let mut options = ArithmeticOptions::default();
                (options.mode, options.delta) = match step {
                    Step::Up(delta) => (ArithmeticMode::Increment, Some(*delta)),
                    Step::Down(delta) => (ArithmeticMode::Decrement, Some(*delta)),
                };
                options.initial = create.map(|create| create.initial);
                options.initial_ttl = create.map(|create| create.expiry);
                options.opaque = opaque;
                build_arithmetic(key, &options)
            }
        }
    }
}

fn encode(command: MetaCommand, bytes: &mut Vec<u8>) -> Result<()> {
    command.encode_into(bytes).map_err(refused_here)
}

fn refused_here(error: WireError) -> Error {
    Error::with_source(ErrorKind::InvalidKey, "writing a command for memcached", error)
}

/// An answer or an error reply for each command.
pub(super) type Answers = Vec<Result<Answer, String>>;

#[derive(Debug)]
pub(super) struct Meta {
    endpoint: Endpoint,
}

impl Meta {
    pub(super) fn new(endpoint: Endpoint) -> Meta {
        Meta { endpoint }
    }
}

impl Protocol for Meta {
    type Connection = Connection;
    type Request = Request;
    type Reply = Answers;

    /// To a server that does not know the meta protocol, the value after a command would be a command.
    async fn open(&self, stream: Stream) -> Result<Connection> {
        let mut connection = Connection::new(stream);
        let probe = Request::probe()?;
        self.send(&mut connection, &probe).await?;
        let greeted = self.receive(&mut connection, &probe).await;
        greeted.map_err(|error| match error.kind() {
            ErrorKind::Server if error.to_string().contains("Too many open connections") => error,
            ErrorKind::Server => {
                let context = format!("{} does not offer the meta protocol of memcached 1.6", self.endpoint);
                Error::with_source(ErrorKind::Unsupported, context, error)
            }
            _ => error,
        })?;
        Ok(connection)
    }

    async fn send(&self, connection: &mut Connection, request: &Request) -> Result<()> {
        connection.send(&request.bytes).await.map_err(|failure| failure.at(&self.endpoint))
    }

    async fn receive(&self, connection: &mut Connection, request: &Request) -> Result<Self::Reply> {
        read_answers(connection, request).await.map_err(|failure| failure.at(&self.endpoint))
    }

    fn stream(connection: &mut Connection) -> &mut Stream {
        connection.stream()
    }
}

async fn read_answers(connection: &mut Connection, request: &Request) -> Result<Answers, Failure> {
    let mut answers = Vec::with_capacity(request.awaited.len());
    for awaited in &request.awaited {
        match awaited {
            Awaited::Reply { token, expected } => answers.push(read_reply(connection, *token, *expected).await?),
            Awaited::Values(keys) => read_values(connection, &request.bytes, keys, &mut answers).await?,
            Awaited::Noop => read_noop(connection).await?,
        }
    }
    connection.finish()?;
    Ok(answers)
}

async fn read_noop(connection: &mut Connection) -> Result<(), Failure> {
    let line = connection.line().await?;
    match MetaResponse::parse_header(line) {
        Ok(header) if header.rc() == ReturnCode::Mn => Ok(()),
        _ => Err(refused_or_malformed(line)),
    }
}

async fn read_reply(
    connection: &mut Connection,
    token: u64,
    expected: Expected,
) -> Result<Result<Answer, String>, Failure> {
    let line = connection.line().await?;
    let header = match MetaResponse::parse_header(line) {
        Ok(header) => header,
        Err(WireError::Server(text)) => return Ok(Err(text)),
        // Behind a refused store, the value may have been taken for commands.
        Err(WireError::Rejected(text)) if expected != Expected::Stored => return Ok(Err(text)),
        Err(_) => return Err(refused_or_malformed(line)),
    };
    let length = if header.rc() == ReturnCode::Va { word(line, 1).and_then(parse_length) } else { None };
    let reply = parse_meta_result(header).map_err(|_| refused_or_malformed(line))?;
    if reply.opaque.as_deref().and_then(parse_number) != Some(token) {
        return Err(malformed(format!("{}, which answers another request", show(line))));
    }
    let value = match length {
        Some(length) => Some(connection.data(length).await?),
        None => None,
    };
    let answer = answer(&reply, value, expected);
    answer.map(Ok).ok_or_else(|| malformed(format!("{:?}, which is no answer to what it was asked", reply.rc)))
}

/// The answer, if it is one of those that are expected.
fn answer(reply: &MetaCommandResult, value: Option<Bytes>, expected: Expected) -> Option<Answer> {
    use Expected::{Deleted, Number, Stored, Touched, Value, ValueWithCas};
    match (reply.rc, expected) {
        (ReturnCode::Va, Value | ValueWithCas) => {
            let value = value?;
            // What another program has put there to say that it is about to store a value is none.
            if value.is_empty() && reply.busy {
                return Some(Answer::Absent);
            }
            let cas = if expected == ValueWithCas { reply.cas? } else { 0 };
            Some(Answer::Value { value, cas })
        }
        (ReturnCode::Va, Number) => parse_number(&value?).map(Answer::Number),
        (ReturnCode::Hd, Touched | Stored | Deleted) => Some(Answer::Done),
        (ReturnCode::En | ReturnCode::Nf, _) => Some(Answer::Absent),
        (ReturnCode::Ns, Stored | Number) => Some(Answer::NotStored),
        (ReturnCode::Ex, Stored | Deleted) => Some(Answer::Changed),
        _ => None,
    }
}

/// The values of a text `get` come in the order of the keys; one that is left out is absent.
async fn read_values(
    connection: &mut Connection,
    request: &[u8],
    keys: &[Range<usize>],
    answers: &mut Answers,
) -> Result<(), Failure> {
    let mut asked = keys.iter();
    loop {
        let line = connection.line().await?;
        if line == b"END" {
            answers.extend(asked.map(|_| Ok(Answer::Absent)));
            return Ok(());
        }
        let (key, length) = parse_value_line(line).ok_or_else(|| refused_or_malformed(line))?;
        let skipped = asked.as_slice().iter().position(|range| &request[range.clone()] == key);
        let skipped = skipped.ok_or_else(|| malformed(format!("{}, which was not asked for", show(line))))?;
        answers.extend(asked.by_ref().take(skipped).map(|_| Ok(Answer::Absent)));
        asked.next();
        let value = connection.data(length).await?;
        answers.push(Ok(Answer::Value { value, cas: 0 }));
    }
}

/// `VALUE <key> <flags> <length>`
fn parse_value_line(line: &[u8]) -> Option<(&[u8], usize)> {
    let key = word(line.strip_prefix(b"VALUE ")?, 0)?;
    Some((key, parse_length(word(line, 3)?)?))
}

fn word(line: &[u8], position: usize) -> Option<&[u8]> {
    line.split(|byte| *byte == b' ').nth(position)
}

fn parse_length(text: &[u8]) -> Option<usize> {
    parse_number(text).filter(|length| *length <= LARGEST_VALUE)
}

fn parse_number<N: FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn refused_or_malformed(line: &[u8]) -> Failure {
    match MetaResponse::parse_header(line) {
        Err(WireError::Server(text) | WireError::Rejected(text)) => Failure::Refused(text),
        _ => malformed(format!("{}, which is no reply", show(line))),
    }
}

fn show(line: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&line[..line.len().min(SHOWN)]))
}
