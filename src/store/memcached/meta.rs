//! The meta protocol, and the text protocol's `get` for several plain keys.
//!
//! Every meta command has a token, which its reply repeats, so no other reply can be mistaken for it. A text `get` is
//! sent between two meta commands of its request, and its values are held back until the reply to the second one has
//! come. An error reply has no token. It is held back until the marker that is sent after it has its reply.
//!
//! The memcache crate's wire layer, which is declared experimental, is used in this module only.

use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use memcache::exp::{MetaResponse, ReturnCode, parse_meta_result};

use self::command::Expected;
pub(super) use self::command::{Command, Condition, Create, Step};
pub(super) use self::reply::Answer;
use self::reply::{answer, error_text, parse_number, value_of};
pub(super) use self::request::Request;
use self::request::{Awaited, Commands};
use super::config::Access;
use super::error_replies::refusal;
use super::framing::{LineFraming, short_value, split, without_end};
use super::login::log_in;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Accepted, Connection, Frame, Marking, Protocol, Tls, Token, WriteBuffer, show};

mod command;
mod reply;
mod request;

const LINE_END: &[u8] = b"\r\n";

/// The marker without its token. The reply repeats the token that follows it.
const MARKER: &[u8] = b"mg prefork-cache O";

/// An answer or the text of an error reply for each command.
pub(super) type Answers = Vec<Result<Answer, String>>;

/// The answers that have come so far.
pub(super) struct Partial {
    commands: Arc<Commands>,
    /// The number of complete replies.
    complete: usize,
    /// The number of keys of the next reply, a text `get`, whose value has come or is absent.
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

    /// Returns the answer in the frame of a meta command's reply, and whether the reply has the command's token.
    fn answer(&self, frame: Frame<'_>, token: u64, expected: Expected) -> Result<(Result<Answer, String>, bool)> {
        let (line, rest) = split(frame.bytes);
        if let Some(text) = error_text(line) {
            // If the server did not accept the command line of a store, it may have taken the value for commands.
            let is_understood = expected != Expected::Stored || text.starts_with("SERVER_ERROR");
            return if is_understood { Ok((Err(text), false)) } else { Err(self.refused(&text)) };
        }
        let header = MetaResponse::parse_header(line).map_err(|_| self.refused_or_malformed(line))?;
        let value = (header.rc() == ReturnCode::Va).then(|| value_of(frame, rest)).transpose();
        let reply = parse_meta_result(header).map_err(|_| self.refused_or_malformed(line))?;
        if reply.opaque.as_deref().and_then(parse_number) != Some(token) {
            return Err(self.malformed(format_args!("{}, which is the reply to another request", show(line))));
        }
        let value = match value {
            Ok(value) => value,
            Err(too_large) => return Ok((Err(too_large), true)),
        };
        let answer = answer(&reply, value, expected);
        let answer = answer
            .ok_or_else(|| self.malformed(format_args!("{:?}, which is not a reply to the command", reply.rc)))?;
        Ok((Ok(answer), true))
    }

    /// Takes a frame of the reply to a text `get`: a value, in the order of the keys, or the end. A skipped key is
    /// absent. Returns whether the frame is the end.
    fn value(&self, frame: Frame<'_>, partial: &mut Partial) -> Result<bool> {
        let Partial { commands, complete, values, answers } = partial;
        let Awaited::Values(keys) = &commands.awaited[*complete] else { unreachable!("a text get is awaited") };
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

    /// Checks that the server knows the meta protocol. Otherwise it would take the value after a command for commands.
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
        Partial {
            commands: Arc::clone(&request.0),
            complete: 0,
            values: 0,
            answers: Vec::with_capacity(request.0.count),
        }
    }

    fn accept(&self, partial: &mut Partial, frame: Frame<'_>) -> Result<Accepted> {
        let mut proven = false;
        match partial.commands.awaited[partial.complete] {
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
        partial.complete += 1;
        let is_complete = partial.complete == partial.commands.awaited.len();
        Ok(if is_complete { Accepted::Complete { proven } } else { Accepted::Incomplete })
    }

    /// Takes the values of a text `get` in the order of its keys, until one is absent.
    fn accept_run(&self, partial: &mut Partial, bytes: &[u8], _: Option<&Token>) -> (usize, bool) {
        let Partial { commands, complete, values, answers } = partial;
        let mut taken = 0;
        if let Awaited::Values(keys) = &commands.awaited[*complete] {
            while let Some(key) = keys.get(*values)
                && let Some((value, length)) = short_value(&bytes[taken..], &commands.outgoing.bytes()[key.clone()])
            {
                answers.push(Ok(Answer::Value { value: Bytes::copy_from_slice(value), cas: 0 }));
                *values += 1;
                taken += length;
            }
        }
        (taken, false)
    }

    fn refusal(&self, partial: &Partial) -> Option<Error> {
        partial.answers.iter().rev().find_map(|answer| answer.as_ref().err()).map(|text| self.refused(text))
    }

    fn refused_marker(&self, frame: &Frame<'_>) -> Option<(Error, bool)> {
        let text = error_text(without_end(frame.bytes))?;
        Some((self.refused(&text), refusal(&text).is_transient()))
    }

    fn finish(partial: Partial) -> Answers {
        partial.answers
    }

    fn is_last(answers: &Answers) -> bool {
        answers.iter().any(|answer| answer.as_ref().is_err_and(|text| refusal(text).closes_connection()))
    }
}
