//! What is said to the server.

use std::io::Write;
use std::iter;
use std::time::Duration;

use bytes::Bytes;
use redis::{Arg, Cmd, Script, ToRedisArgs, Value, cmd};
use smallvec::SmallVec;

use crate::error::Result;
use crate::net::Outgoing;
use crate::store::{Ttl, When, milliseconds_rounded_up};

/// How many keys a step of a scan looks at.
const SCAN_STEP: u32 = 1_000;

/// A command, and what its reply must be.
pub(super) struct Command {
    packed: Cmd,
    /// The value that is sent in place of an empty argument, and which of them that is.
    value: Option<(usize, Bytes)>,
    expected: Expected,
}

/// What the reply to a command must be, if it is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// A string, or nothing.
    Value,
    Values(u32),
    /// OK, or nothing.
    Stored,
    Number,
    /// A cursor and keys.
    Keys,
    /// A line of text.
    Status,
    /// The replies of a transaction, the last of which is a number.
    Executed,
    Anything,
}

impl Expected {
    pub(super) fn admits(self, reply: &Value) -> bool {
        match (self, reply) {
            (_, Value::ServerError(_)) | (Expected::Anything, _) => true,
            (Expected::Value, reply) => is_string(reply),
            (Expected::Values(count), Value::Array(values)) => {
                values.len() == count as usize && values.iter().all(|value| is_string(value) || is_error(value))
            }
            (Expected::Stored, reply) => matches!(reply, Value::Okay | Value::Nil),
            (Expected::Number, reply) => matches!(reply, Value::Int(_)),
            (Expected::Keys, Value::Array(parts)) => {
                matches!(parts.as_slice(), [Value::BulkString(_), Value::Array(keys)] if keys.iter().all(is_string))
            }
            (Expected::Status, reply) => matches!(reply, Value::Okay | Value::SimpleString(_)),
            (Expected::Executed, Value::Array(replies)) => {
                matches!(replies.as_slice(), [.., Value::Int(_) | Value::ServerError(_)])
            }
            (Expected::Values(_) | Expected::Keys | Expected::Executed, _) => false,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Expected::Value => "a value",
            Expected::Values(_) => "as many values as there were keys",
            Expected::Stored => "OK",
            Expected::Number => "a number",
            Expected::Keys => "a cursor and keys",
            Expected::Status => "a status",
            Expected::Executed => "the replies of a transaction",
            Expected::Anything => "a reply",
        }
    }

    /// Whether what is answered in this way changes nothing.
    pub(super) fn is_read(self) -> bool {
        matches!(self, Expected::Value | Expected::Values(_) | Expected::Keys)
    }
}

fn is_string(reply: &Value) -> bool {
    matches!(reply, Value::BulkString(_) | Value::Nil)
}

fn is_error(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(_))
}

impl Command {
    pub(super) fn new(packed: Cmd, expected: Expected) -> Command {
        Command { packed, value: None, expected }
    }

    /// A value is sent as the last argument so far.
    fn with_value(mut self, value: Bytes) -> Command {
        self.packed.arg("");
        self.value = Some((self.packed.args_iter().count() - 1, value));
        self
    }

    fn with(mut self, argument: impl ToRedisArgs) -> Command {
        self.packed.arg(argument);
        self
    }

    fn write(&self, outgoing: &mut Outgoing) {
        let Some((place, value)) = &self.value else { return self.packed.write_packed_command(outgoing.buffer()) };
        write_header(outgoing, b'*', self.packed.args_iter().count());
        for (index, argument) in self.packed.args_iter().enumerate() {
            match argument {
                _ if index == *place => {
                    write_header(outgoing, b'$', value.len());
                    outgoing.push(value);
                }
                Arg::Simple(argument) => {
                    write_header(outgoing, b'$', argument.len());
                    outgoing.buffer().extend_from_slice(argument);
                }
                _ => write_header(outgoing, b'$', 0),
            }
            outgoing.buffer().extend_from_slice(b"\r\n");
        }
    }
}

fn write_header(outgoing: &mut Outgoing, kind: u8, number: usize) {
    outgoing.buffer().push(kind);
    // Writing to a buffer in memory does not fail.
    let _ = write!(outgoing.buffer(), "{number}\r\n");
}

/// Commands that go out together.
pub(super) struct Request(SmallVec<[Command; 1]>);

impl Request {
    pub(super) fn one(command: Command) -> Request {
        Request(SmallVec::from_buf([command]))
    }

    pub(super) fn several(commands: impl IntoIterator<Item = Command>) -> Request {
        Request(commands.into_iter().collect())
    }

    /// The commands between MULTI and EXEC. The last reply is the array of theirs.
    pub(super) fn transaction(commands: impl IntoIterator<Item = Command>) -> Request {
        let queued = commands.into_iter().map(|command| Command { expected: Expected::Status, ..command });
        let multi = Command::new(cmd("MULTI"), Expected::Status);
        Request(iter::once(multi).chain(queued).chain([Command::new(cmd("EXEC"), Expected::Executed)]).collect())
    }

    /// How many replies there will be.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn expected(&self) -> impl Iterator<Item = Expected> {
        self.0.iter().map(|command| command.expected)
    }

    /// What it is called in a trace, and of how many commands it consists besides MULTI and EXEC.
    pub(super) fn operation(&self) -> (String, usize) {
        let mut names: Vec<String> = self.0.iter().map(|command| name(&command.packed)).collect();
        let is_transaction = names.first().is_some_and(|name| name == "MULTI");
        if is_transaction {
            names = names[1..names.len() - 1].to_vec();
        }
        let kind = if is_transaction { "MULTI" } else { "PIPELINE" };
        let operation = match names.as_slice() {
            [only] if !is_transaction => only.clone(),
            [first, others @ ..] if others.iter().all(|other| other == first) => format!("{kind} {first}"),
            _ => kind.to_owned(),
        };
        (operation, names.len())
    }

    /// Appends it as it goes over the wire.
    pub(super) fn write(&self, outgoing: &mut Outgoing) {
        self.0.iter().for_each(|command| command.write(outgoing));
    }
}

/// The command's name, and nothing of its arguments.
fn name(command: &Cmd) -> String {
    match command.args_iter().next() {
        Some(Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
        _ => String::new(),
    }
}

pub(super) fn ping() -> Command {
    Command::new(cmd("PING"), Expected::Status)
}

pub(super) fn get(key: &str) -> Command {
    command("GET", key, Expected::Value)
}

pub(super) fn get_many(keys: &[&str]) -> Command {
    let expected = Expected::Values(u32::try_from(keys.len()).unwrap_or(u32::MAX));
    keys.iter().fold(Command::new(cmd("MGET"), expected), |command, key| command.with(*key))
}

pub(super) fn set(key: &str, value: &Bytes, ttl: Ttl, when: When) -> Result<Command> {
    let mut command = command("SET", key, Expected::Stored).with_value(value.clone());
    if let Some(duration) = ttl.duration()? {
        command = command.with("PX").with(milliseconds_rounded_up(duration));
    }
    Ok(match when {
        When::Always => command,
        When::IfAbsent => command.with("NX"),
        When::IfPresent => command.with("XX"),
    })
}

pub(super) fn unlink<K: ToRedisArgs>(keys: &[K]) -> Command {
    keys.iter().fold(Command::new(cmd("UNLINK"), Expected::Number), Command::with)
}

pub(super) fn expire(key: &str, duration: Duration) -> Command {
    command("PEXPIRE", key, Expected::Number).with(milliseconds_rounded_up(duration))
}

/// Takes a key's time to live away; the last reply says whether there is such a key.
pub(super) fn persist(key: &str) -> [Command; 2] {
    [command("PERSIST", key, Expected::Number), command("EXISTS", key, Expected::Number)]
}

/// Creates the counter with its time to live unless it is there, and counts.
pub(super) fn increment(key: &str, by: i64, ttl: Ttl) -> Result<[Command; 2]> {
    let create = set(key, &Bytes::from_static(b"0"), ttl, When::IfAbsent)?;
    Ok([create, command("INCRBY", key, Expected::Number).with(by)])
}

pub(super) fn scan(cursor: u64, pattern: &[u8]) -> Command {
    let command = Command::new(cmd("SCAN"), Expected::Keys).with(cursor);
    command.with("MATCH").with(pattern).with("COUNT").with(SCAN_STEP)
}

/// A pattern that matches the keys that start with `prefix`, whatever characters it holds.
pub(super) fn keys_that_start_with(prefix: &str) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len() + 1);
    for &byte in prefix.as_bytes() {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'^' | b'-' | b'\\') {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

/// The script behind compare-and-set, sent by its hash.
pub(super) struct CompareAndSet {
    script: Script,
}

impl CompareAndSet {
    /// Arguments: whether a value is expected, that value, whether there is a new one, that one, its milliseconds to live
    /// (0: for ever).
    const TEXT: &'static str = r"
        local held = redis.call('GET', KEYS[1])
        if ARGV[1] == '0' then
            if held then return 0 end
        elseif held ~= ARGV[2] then
            return 0
        end
        if ARGV[3] == '0' then
            redis.call('UNLINK', KEYS[1])
        elseif ARGV[5] == '0' then
            redis.call('SET', KEYS[1], ARGV[4])
        else
            redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
        end
        return 1";

    pub(super) fn new() -> CompareAndSet {
        CompareAndSet { script: Script::new(CompareAndSet::TEXT) }
    }

    pub(super) fn by_hash(&self, key: &str, expected: Option<&[u8]>, new: Option<&Bytes>, ttl: Ttl) -> Result<Command> {
        arguments(command("EVALSHA", self.script.get_hash(), Expected::Number), key, expected, new, ttl)
    }

    /// For a server that does not know the script yet, and then does.
    pub(super) fn by_text(&self, key: &str, expected: Option<&[u8]>, new: Option<&Bytes>, ttl: Ttl) -> Result<Command> {
        arguments(command("EVAL", CompareAndSet::TEXT, Expected::Number), key, expected, new, ttl)
    }
}

fn arguments(script: Command, key: &str, expected: Option<&[u8]>, new: Option<&Bytes>, ttl: Ttl) -> Result<Command> {
    let milliseconds = ttl.duration()?.map_or(0, milliseconds_rounded_up);
    let script = script.with(1).with(key).with(i32::from(expected.is_some())).with(expected.unwrap_or_default());
    Ok(script.with(i32::from(new.is_some())).with_value(new.cloned().unwrap_or_default()).with(milliseconds))
}

fn command(name: &str, first: &str, expected: Expected) -> Command {
    const OTHERS: usize = 4;
    let mut packed = Cmd::with_capacity(2 + OTHERS, name.len() + first.len());
    packed.arg(name).arg(first);
    Command::new(packed, expected)
}

#[cfg(test)]
mod tests {
    use super::keys_that_start_with;

    #[test]
    fn a_prefix_matches_only_itself() {
        assert_eq!(keys_that_start_with("a*b?[c-d]^\\"), br"a\*b\?\[c\-d\]\^\\*");
        assert_eq!(keys_that_start_with(""), b"*");
    }
}
