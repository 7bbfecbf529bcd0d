//! The commands of one exchange.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use memcache::exp::Error as WireError;

use super::LINE_END;
use super::command::{Command, Expected, LINE};
use crate::error::{Error, ErrorKind, Result};
use crate::net::WriteBuffer;
use crate::store::memcached::key::Key;

/// The commands of one exchange.
#[derive(Debug, Default)]
pub(in crate::store::memcached) struct Request(pub(super) Arc<Commands>);

/// The encoded commands of a request.
#[derive(Debug, Default)]
pub(super) struct Commands {
    pub(super) outgoing: WriteBuffer,
    pub(super) awaited: Vec<Awaited>,
    pub(super) count: usize,
    /// Whether a command changes an entry.
    pub(super) changes: bool,
}

/// A reply that is awaited.
#[derive(Debug)]
pub(super) enum Awaited {
    /// The reply to a meta command.
    Reply { token: u64, expected: Expected },
    /// The reply to a text `get`. The keys are in these ranges of the request.
    Values(Vec<Range<usize>>),
}

impl Request {
    /// Returns a request that changes nothing, to check that the server responds.
    pub(in crate::store::memcached) fn probe(token: u64) -> Result<Request> {
        Request::of(&[(&Key::new("prefork-cache")?, &Command::Get)], token)
    }

    /// Encodes commands with consecutive tokens that begin with `token`. The tokens must not have been used on the
    /// connection before. Gets of plain keys between the first and the last command become text `get`s.
    pub(in crate::store::memcached) fn of(commands: &[(&Key<'_>, &Command)], token: u64) -> Result<Request> {
        let mut request = Commands { count: commands.len(), ..Commands::default() };
        request.outgoing.buffer().reserve(commands.iter().map(|(key, _)| LINE + key.wire().len()).sum());
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
        if let Some(Awaited::Values(_)) = self.awaited.last() {
            self.outgoing.buffer().extend_from_slice(LINE_END);
        }
        let built = command.build(key.wire(), token).map_err(unwritable)?;
        let built = if key.is_base64() { built.flag("b") } else { built };
        let start = self.outgoing.buffer().len();
        built.encode_into(self.outgoing.buffer()).map_err(unwritable)?;
        if let Command::Set { value, .. } | Command::Append { value, .. } = command {
            self.push_value(start + "ms ".len() + key.wire().len() + 1, value);
        }
        self.changes |= !matches!(command, Command::Get | Command::GetWithCas | Command::TimeLeft);
        self.awaited.push(Awaited::Reply { token, expected: command.expected() });
        Ok(())
    }

    /// Appends the value to a command that was built without one, and writes its length over the `0` at `length_at`.
    fn push_value(&mut self, length_at: usize, value: &Bytes) {
        let line = self.outgoing.buffer();
        line.splice(length_at..=length_at, value.len().to_string().into_bytes());
        line.truncate(line.len() - LINE_END.len());
        self.outgoing.push(value);
        self.outgoing.buffer().extend_from_slice(LINE_END);
    }

    /// Adds a key to the text `get` at the end of the request, or begins one. The next meta command ends the line.
    fn push_text_get(&mut self, key: &Key<'_>) {
        let line = self.outgoing.buffer();
        let start = line.len() + b" ".len();
        if let Some(Awaited::Values(keys)) = self.awaited.last_mut() {
            keys.push(start..start + key.wire().len());
        } else {
            line.extend_from_slice(b"get");
            let start = start + b"get".len();
            let mut keys = Vec::with_capacity(self.count);
            keys.push(start..start + key.wire().len());
            self.awaited.push(Awaited::Values(keys));
        }
        line.push(b' ');
        line.extend_from_slice(key.wire());
    }
}

fn unwritable(error: WireError) -> Error {
    Error::with_source(ErrorKind::InvalidKey, "writing a command for memcached", error)
}
