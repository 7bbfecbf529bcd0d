//! Commands and replies: the meta protocol, and the text protocol's `get` for many plain keys at once.
//!
//! Every meta command carries a token of its own, which its reply repeats: no other reply can be taken for it. A text
//! `get` stands between two meta commands of its request, and its values are held back until the reply to the second
//! one has come. An error reply has no token, and is held until a marker behind it is answered.
//!
//! The memcache crate's wire layer, which calls itself experimental, is used in this file only.

use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use memcache::exp::{
    ArithmeticMode, ArithmeticOptions, DeleteOptions, Error as WireError, GetOptions, MetaCommand, MetaCommandResult,
    MetaResponse, ReturnCode, SetMode, SetOptions, build_arithmetic, build_delete, build_get, build_set,
    parse_meta_result,
};

use super::config::Access;
use super::error_replies::{LARGER_THAN_ALLOWED, refusal};
use super::framing::{LineFraming, split, without_end};
use super::key::Key;
use super::login::log_in;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Accepted, Connection, Frame, Marking, Protocol, Tls, WriteBuffer, show};

const LINE_END: &[u8] = b"\r\n";

/// A command whose answer repeats the token that it is followed by, up to that token.
const MARKER: &[u8] = b"mg prefork-cache O";

/// What a server is asked to do with one key.
#[derive(Debug)]
pub(super) enum Command {
    Get,
    GetWithCas,
    Touch { expiry: u32 },
    TimeLeft,
    Append { value: Bytes },
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
    /// In seconds; below zero, for ever.
    TimeLeft(i64),
    Absent,
    NotStored,
    /// Somebody else has changed the entry.
    Changed,
}

/// The commands of one exchange.
#[derive(Debug, Default)]
pub(super) struct Request(Arc<Commands>);

#[derive(Debug, Default)]
struct Commands {
    outgoing: WriteBuffer,
    awaited: Vec<Awaited>,
    count: usize,
    changes: bool,
}

#[derive(Debug)]
enum Awaited {
    Reply {
        token: u64,
        expected: Expected,
    },
    /// To a text `get` of the keys in these parts of the request.
    Values(Vec<Range<usize>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Value,
    ValueWithCas,
    Touched,
    TimeLeft,
    Stored,
    Deleted,
    Number,
}

impl Request {
    /// Has the server answer, and change nothing.
    pub(super) fn probe(token: u64) -> Result<Request> {
        Request::of(&[(&Key::new("prefork-cache")?, &Command::Get)], token)
    }

    /// These commands, with the tokens from `token` on, which the server must not have seen on the connection.
    pub(super) fn of(commands: &[(&Key<'_>, &Command)], token: u64) -> Result<Request> {
        let mut request = Commands { count: commands.len(), ..Commands::default() };
        let last = commands.len() - 1;
        for (index, (token, (key, command))) in (token..).zip(commands).enumerate() {
            let is_between = index > 0 && index < last;
            if is_between && matches!(command, Command::Get) && !key.is_base64() {
                request.push_text_get(key);
            } else {
                request.push(key, command, token)?;
            }
        }
        Ok(Request(Arc::new(request)))
    }
}

impl Commands {
    fn push(&mut self, key: &Key<'_>, command: &Command, token: u64) -> Result<()> {
        let built = command.build(key.wire(), token).map_err(refused_here)?;
        let built = if key.is_base64() { built.flag("b") } else { built };
        let start = self.outgoing.buffer().len();
        built.encode_into(self.outgoing.buffer()).map_err(refused_here)?;
        if let Command::Set { value, .. } | Command::Append { value, .. } = command {
            self.push_value(start + "ms ".len() + key.wire().len() + 1, value);
        }
        self.changes |= !matches!(command, Command::Get | Command::GetWithCas | Command::TimeLeft);
        self.awaited.push(Awaited::Reply { token, expected: command.expected() });
        Ok(())
    }

    /// Puts a value behind the command that was built without one, and its length in the place of that one's, a zero.
    fn push_value(&mut self, place: usize, value: &Bytes) {
        let line = self.outgoing.buffer();
        line.splice(place..=place, value.len().to_string().into_bytes());
        line.truncate(line.len() - LINE_END.len());
        self.outgoing.push(value);
        self.outgoing.buffer().extend_from_slice(LINE_END);
    }

    /// Continues the `get` before, if that is what the request ends with.
    fn push_text_get(&mut self, key: &Key<'_>) {
        let line = self.outgoing.buffer();
        if !matches!(self.awaited.last(), Some(Awaited::Values(_))) {
            line.extend_from_slice(b"get\r\n");
            self.awaited.push(Awaited::Values(Vec::new()));
        }
        line.truncate(line.len() - LINE_END.len());
        line.push(b' ');
        let start = line.len();
        line.extend_from_slice(key.wire());
        if let Some(Awaited::Values(keys)) = self.awaited.last_mut() {
            keys.push(start..line.len());
        }
        line.extend_from_slice(LINE_END);
    }
}

impl Command {
    /// About how many bytes it is on the wire, besides its key.
    pub(super) fn size(&self) -> usize {
        const LINE: usize = 64;
        match self {
            Command::Set { value, .. } | Command::Append { value, .. } => LINE + value.len(),
            _ => LINE,
        }
    }

    /// What the text protocol calls it.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Command::Get => "get",
            Command::GetWithCas => "gets",
            Command::Touch { .. } => "touch",
            Command::TimeLeft => "mg",
            Command::Append { .. } => "append",
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
            Command::TimeLeft => Expected::TimeLeft,
            Command::Set { .. } | Command::Append { .. } => Expected::Stored,
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
            Command::TimeLeft => {
                let mut options = GetOptions::default();
                (options.value, options.return_ttl) = (false, true);
                options.opaque = opaque;
                build_get(key, &options)
            }
            Command::Append { value: _ } => {
                let mut options = SetOptions::default();
                options.mode = SetMode::Append;
                options.opaque = opaque;
                build_set(key, Vec::new(), &options)
            }
            Command::Set { value: _, expiry, condition } => {
                let mut options = SetOptions::default();
                options.ttl = Some(*expiry);
                options.opaque = opaque;
                match condition {
                    Condition::Always => {}
                    Condition::IfAbsent => options.mode = SetMode::Add,
                    Condition::IfPresent => options.mode = SetMode::Replace,
                    Condition::IfUnchanged { cas } => options.compare_cas = Some(*cas),
                }
                build_set(key, Vec::new(), &options)
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

fn refused_here(error: WireError) -> Error {
    Error::with_source(ErrorKind::InvalidKey, "writing a command for memcached", error)
}

/// An answer or an error reply for each command.
pub(super) type Answers = Vec<Result<Answer, String>>;

/// Answers of which some are still to come.
pub(super) struct Partial {
    commands: Arc<Commands>,
    /// How many of what is awaited has come, and how many values of the next.
    come: usize,
    values: usize,
    answers: Answers,
}

#[derive(Debug)]
pub(super) struct Meta {
    endpoint: Endpoint,
    access: Access,
    max_value: usize,
}

impl Meta {
    pub(super) fn new(endpoint: Endpoint, access: Access, max_value: usize) -> Meta {
        Meta { endpoint, access, max_value }
    }

    fn malformed(&self, what: impl Display) -> Error {
        Error::new(ErrorKind::Protocol, format!("{} sent {what}", self.endpoint))
    }

    fn refused(&self, text: &str) -> Error {
        refusal(text).error(format!("{} answered: {text}", self.endpoint))
    }

    fn refused_or_malformed(&self, line: &[u8]) -> Error {
        match error_text(line) {
            Some(text) => self.refused(&text),
            None => self.malformed(format_args!("{}, which is no reply", show(line))),
        }
    }

    /// The answer in a frame to a meta command, and whether it carries the command's token.
    fn answer(&self, frame: Frame<'_>, token: u64, expected: Expected) -> Result<(Result<Answer, String>, bool)> {
        let (line, rest) = split(frame.bytes);
        if let Some(text) = error_text(line) {
            // Behind a store that was not understood, the value may have been taken for commands.
            let is_understood = expected != Expected::Stored || text.starts_with("SERVER_ERROR");
            return if is_understood { Ok((Err(text), false)) } else { Err(self.refused(&text)) };
        }
        let header = MetaResponse::parse_header(line).map_err(|_| self.refused_or_malformed(line))?;
        let value = (header.rc() == ReturnCode::Va).then(|| value_of(frame, rest)).transpose();
        let reply = parse_meta_result(header).map_err(|_| self.refused_or_malformed(line))?;
        if reply.opaque.as_deref().and_then(parse_number) != Some(token) {
            return Err(self.malformed(format_args!("{}, which answers another request", show(line))));
        }
        let value = match value {
            Ok(value) => value,
            Err(too_large) => return Ok((Err(too_large), true)),
        };
        let answer = answer(&reply, value, expected);
        let answer = answer
            .ok_or_else(|| self.malformed(format_args!("{:?}, which is no answer to what it was asked", reply.rc)))?;
        Ok((Ok(answer), true))
    }

    /// A frame of the reply to a text `get`: one of its values, in the order of the keys, or the end. A key that is
    /// left out is absent. Returns whether it was the end.
    fn value(&self, frame: Frame<'_>, partial: &mut Partial) -> Result<bool> {
        let Partial { commands, come, values, answers } = partial;
        let Awaited::Values(keys) = &commands.awaited[*come] else { unreachable!("a text get is awaited") };
        let (line, rest) = split(frame.bytes);
        let is_end = line == b"END";
        let skipped = match line.strip_prefix(b"VALUE ") {
            _ if is_end => keys.len() - *values,
            Some(named) => {
                let is_of = |key: &Range<usize>| {
                    let key = &commands.outgoing.bytes()[key.clone()];
                    named.strip_prefix(key).is_some_and(|rest| rest.first() == Some(&b' '))
                };
                let skipped = keys[*values..].iter().position(is_of);
                skipped.ok_or_else(|| self.malformed(format_args!("{}, which was not asked for", show(line))))?
            }
            None => return Err(self.refused_or_malformed(line)),
        };
        answers.extend((0..skipped).map(|_| Ok(Answer::Absent)));
        *values += skipped;
        if !is_end {
            *values += 1;
            answers.push(value_of(frame, rest).map(|value| Answer::Value { value, cas: 0 }));
        }
        Ok(is_end)
    }
}

impl Protocol for Meta {
    type Framing = LineFraming;
    type Request = Request;
    type Partial = Partial;
    type Reply = Answers;

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn tls(&self) -> Option<&Tls> {
        self.access.tls.as_ref()
    }

    fn framing(&self) -> LineFraming {
        LineFraming::new()
    }

    fn max_value(&self) -> usize {
        self.max_value
    }

    /// To a server that does not know the meta protocol, the value after a command would be a command.
    async fn greet(&self, connection: &mut Connection<Meta>, _: usize) -> Result<Marking> {
        log_in(self, connection, &self.access.login).await?;
        let Err(answer) = connection.try_marker(MARKER).await? else {
            return Ok(Marking::WhereUnproven(MARKER));
        };
        let refused = self.refused_or_malformed(without_end(&answer));
        if refused.kind() != ErrorKind::Unsupported {
            return Err(refused);
        }
        let context = format!("{} does not offer the meta protocol of memcached 1.6", self.endpoint);
        Err(Error::with_source(ErrorKind::Unsupported, context, refused))
    }

    fn is_read(request: &Request) -> bool {
        !request.0.changes
    }

    fn key(request: &Request) -> &[u8] {
        request.0.outgoing.bytes().split(|byte| *byte == b' ').nth(1).unwrap_or_default()
    }

    fn longest_value(answers: &Answers) -> usize {
        let length = |answer: &Result<Answer, String>| match answer {
            Ok(Answer::Value { value, .. }) => value.len(),
            _ => 0,
        };
        answers.iter().map(length).max().unwrap_or(0)
    }

    fn write(&self, request: &Request, outgoing: &mut WriteBuffer) -> Partial {
        outgoing.append(&request.0.outgoing);
        Partial { commands: Arc::clone(&request.0), come: 0, values: 0, answers: Vec::with_capacity(request.0.count) }
    }

    fn accept(&self, partial: &mut Partial, frame: Frame<'_>) -> Result<Accepted> {
        let mut proven = false;
        match partial.commands.awaited[partial.come] {
            Awaited::Reply { token, expected } => {
                let (answer, has_token) = self.answer(frame, token, expected)?;
                partial.answers.push(answer);
                proven = has_token;
            }
            Awaited::Values(_) => {
                if !self.value(frame, partial)? {
                    return Ok(Accepted::Incomplete);
                }
                partial.values = 0;
            }
        }
        partial.come += 1;
        let is_complete = partial.come == partial.commands.awaited.len();
        Ok(if is_complete { Accepted::Complete { proven } } else { Accepted::Incomplete })
    }

    fn refusal(&self, partial: &Partial) -> Option<Error> {
        partial.answers.iter().rev().find_map(|answer| answer.as_ref().err()).map(|text| self.refused(text))
    }

    fn refused_marker(&self, frame: &Frame<'_>) -> Option<(Error, bool)> {
        let text = error_text(without_end(frame.bytes))?;
        Some((self.refused(&text), refusal(&text).is_for_the_moment()))
    }

    fn finish(partial: Partial) -> Answers {
        partial.answers
    }

    fn is_last(answers: &Answers) -> bool {
        answers.iter().any(|answer| answer.as_ref().is_err_and(|text| refusal(text).gives_up()))
    }
}

/// What an error reply says.
fn error_text(line: &[u8]) -> Option<String> {
    let is_error = [&b"ERROR"[..], b"CLIENT_ERROR", b"SERVER_ERROR"]
        .iter()
        .any(|error| line.strip_prefix(*error).is_some_and(|rest| matches!(rest.first(), None | Some(b' '))));
    is_error.then(|| String::from_utf8_lossy(line).into_owned())
}

/// The value behind the line of a frame that has one, unless it was not kept.
fn value_of(mut frame: Frame<'_>, value: &[u8]) -> Result<Bytes, String> {
    if let Some((_, value)) = frame.large.pop() {
        return value.map(Bytes::from).ok_or_else(|| LARGER_THAN_ALLOWED.to_owned());
    }
    Ok(Bytes::copy_from_slice(value.strip_suffix(LINE_END).unwrap_or(value)))
}

/// The answer, if it is one of those that are expected.
fn answer(reply: &MetaCommandResult, value: Option<Bytes>, expected: Expected) -> Option<Answer> {
    use Expected::{Deleted, Number, Stored, TimeLeft, Touched, Value, ValueWithCas};
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
        (ReturnCode::Hd, TimeLeft) => reply.ttl.map(Answer::TimeLeft),
        (ReturnCode::Hd, Touched | Stored | Deleted) => Some(Answer::Done),
        (ReturnCode::En | ReturnCode::Nf, _) => Some(Answer::Absent),
        (ReturnCode::Ns, Stored | Number) => Some(Answer::NotStored),
        (ReturnCode::Ex, Stored | Deleted) => Some(Answer::Changed),
        _ => None,
    }
}

fn parse_number<N: FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
