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
        let is_text_get = |index: usize| {
            let (key, command) = commands[index];
            index > 0 && index < last && matches!(command, Command::Get) && !key.is_base64()
        };
        let mut index = 0;
        while index < commands.len() {
            let gets = (index..last).take_while(|index| is_text_get(*index)).count();
            if gets > 0 {
                request.push_text_get(commands[index..index + gets].iter().map(|(key, _)| *key));
                index += gets;
            } else {
                let (key, command) = commands[index];
                request.push(key, command, token + index as u64)?;
                index += 1;
            }
        }
        Ok(Request(Arc::new(request)))
    }
}

impl Commands {
    fn push(&mut self, key: &Key<'_>, command: &Command, token: u64) -> Result<()> {
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

    /// Adds a text `get` of several keys.
    fn push_text_get<'k>(&mut self, keys: impl ExactSizeIterator<Item = &'k Key<'k>>) {
        let line = self.outgoing.buffer();
        line.extend_from_slice(b"get");
        let mut places = Vec::with_capacity(keys.len());
        for key in keys {
            line.push(b' ');
            let start = line.len();
            line.extend_from_slice(key.wire());
            places.push(start..line.len());
        }
        line.extend_from_slice(LINE_END);
        self.awaited.push(Awaited::Values(places));
    }
}

fn unwritable(error: WireError) -> Error {
    Error::with_source(ErrorKind::InvalidKey, "writing a command for memcached", error)
}
