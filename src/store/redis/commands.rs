//! The commands that are sent to the server.

use std::iter;
use std::time::Duration;

use bytes::Bytes;
use redis::{Script, Value};
use smallvec::SmallVec;

use crate::error::Result;
use crate::net::{LARGE, WriteBuffer};
use crate::store::{Ttl, When, milliseconds_rounded_up};

/// How many keys a step of a scan looks at.
const SCAN_STEP: u32 = 1_000;

/// A command and the expected kind of its reply; or several gets, each with a reply.
///
/// It is packed here and not by the redis crate: of the cost of a GET in a batch, a fifth was spent in the crate's
/// `Cmd`, which keeps its arguments and packs them later.
#[derive(Clone)]
pub(super) struct Command {
    name: &'static str,
    arguments: usize,
    packed: Vec<u8>,
    /// A large argument, which is sent without a copy, and its position in `packed`.
    large: Option<(usize, Bytes)>,
    expected: Expected,
    replies: usize,
}

/// The expected kind of the reply to a command. An error reply is always allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// A string or null.
    Value,
    /// An array of this many values.
    Values(u16),
    /// OK or null.
    Stored,
    Number,
    /// A cursor and keys.
    Keys,
    /// A simple string.
    Status,
    /// The replies to the commands of a transaction, the last of which is a number.
    Executed,
    Anything,
}

impl Expected {
    /// Returns whether a reply is of this kind.
    pub(super) fn admits(self, reply: &Value) -> bool {
        match (self, reply) {
            (_, Value::ServerError(_)) | (Expected::Anything, _) => true,
            (Expected::Value, reply) => is_string(reply),
            (Expected::Values(count), Value::Array(values)) => {
                values.len() == usize::from(count) && values.iter().all(|value| is_string(value) || is_error(value))
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

    /// Returns whether a command with this kind of reply changes nothing.
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
    #[inline]
    pub(super) fn new(name: &'static str, expected: Expected) -> Command {
        const ORDINARY: usize = 64;
        let mut packed = Vec::with_capacity(ORDINARY);
        pack(&mut packed, name.as_bytes());
        Command { name, arguments: 1, packed, large: None, expected, replies: 1 }
    }

    #[inline]
    pub(super) fn with(mut self, argument: impl AsRef<[u8]>) -> Command {
        self.arguments += 1;
        pack(&mut self.packed, argument.as_ref());
        self
    }

    pub(super) fn with_number(self, number: impl Into<i128>) -> Command {
        self.with(number.into().to_string())
    }

    /// Appends a Boolean in the form that the scripts expect.
    pub(super) fn with_flag(self, flag: bool) -> Command {
        self.with(if flag { "1" } else { "0" })
    }

    /// Appends a value. A command has at most one argument that may be large.
    pub(super) fn with_value(mut self, value: Bytes) -> Command {
        if value.len() <= LARGE {
            return self.with(value);
        }
        self.arguments += 1;
        push_header(&mut self.packed, b'$', value.len());
        self.large = Some((self.packed.len(), value));
        self.packed.extend_from_slice(LINE_END);
        self
    }

    /// Appends another get to this one and returns true, or returns false if this is not a get. A batch may have
    /// thousands of gets; a buffer for each took more than a third of the client's time.
    #[inline]
    pub(super) fn append_get(&mut self, key: &str) -> bool {
        if self.name != GET {
            return false;
        }
        self.packed.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
        pack(&mut self.packed, key.as_bytes());
        self.replies += 1;
        true
    }

    fn write(&self, outgoing: &mut WriteBuffer) {
        push_header(outgoing.buffer(), b'*', self.arguments);
        let (before, after) =
            self.packed.split_at(self.large.as_ref().map_or(self.packed.len(), |(position, _)| *position));
        outgoing.buffer().extend_from_slice(before);
        if let Some((_, value)) = &self.large {
            outgoing.push(value);
            outgoing.buffer().extend_from_slice(after);
        }
    }
}

const LINE_END: &[u8] = b"\r\n";

const MAX_HEADER: usize = 24;

/// Appends an argument: its header, its bytes and a line end.
#[inline]
fn pack(packed: &mut Vec<u8>, argument: &[u8]) {
    packed.reserve(MAX_HEADER + argument.len() + LINE_END.len());
    push_header(packed, b'$', argument.len());
    packed.extend_from_slice(argument);
    packed.extend_from_slice(LINE_END);
}

/// Appends the header of a frame: its kind, its length or count, and a line end.
#[inline]
fn push_header(packed: &mut Vec<u8>, kind: u8, number: usize) {
    let digit = |number: usize| b'0' + (number % 10) as u8;
    match number {
        0..10 => packed.extend_from_slice(&[kind, digit(number), b'\r', b'\n']),
        10..100 => packed.extend_from_slice(&[kind, digit(number / 10), digit(number), b'\r', b'\n']),
        _ => push_long_header(packed, kind, number),
    }
}

fn push_long_header(packed: &mut Vec<u8>, kind: u8, mut number: usize) {
    let mut header = [0; MAX_HEADER];
    let mut start = MAX_HEADER - LINE_END.len();
    header[start..].copy_from_slice(LINE_END);
    while number > 0 {
        start -= 1;
        header[start] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    start -= 1;
    header[start] = kind;
    packed.extend_from_slice(&header[start..]);
}

/// Commands that are sent in one write.
pub(super) struct Request(SmallVec<[Command; 1]>);

impl Request {
    pub(super) fn one(command: Command) -> Request {
        Request(SmallVec::from_buf([command]))
    }

    pub(super) fn several(commands: impl IntoIterator<Item = Command>) -> Request {
        Request(commands.into_iter().collect())
    }

    /// Puts the commands between MULTI and EXEC. The last reply is the array of the commands' replies.
    pub(super) fn transaction(commands: impl IntoIterator<Item = Command>) -> Request {
        let queued = commands.into_iter().map(|command| Command { expected: Expected::Status, ..command });
        let multi = Command::new("MULTI", Expected::Status);
        Request(iter::once(multi).chain(queued).chain([Command::new("EXEC", Expected::Executed)]).collect())
    }

    /// Puts ASKING in front of the request, for a cluster node that is importing the slot.
    pub(super) fn asking(&self) -> Request {
        Request(iter::once(asking()).chain(self.0.iter().cloned()).collect())
    }

    /// Returns the bytes of the first command, without a large argument.
    pub(super) fn first(&self) -> &[u8] {
        self.0.first().map_or(&[], |command| &command.packed)
    }

    pub(super) fn is_read(&self) -> bool {
        self.0.iter().all(|command| command.expected.is_read())
    }

    /// Returns its name in a trace, and the number of its commands without MULTI and EXEC.
    pub(super) fn operation(&self) -> (String, usize) {
        let names = self.0.iter().flat_map(|command| iter::repeat_n(command.name, command.replies));
        let names: Vec<&str> = names.collect();
        let (kind, names) = match names.as_slice() {
            ["MULTI", queued @ .., "EXEC"] => ("MULTI", queued),
            names => ("PIPELINE", names),
        };
        let operation = match names {
            [only] if kind == "PIPELINE" => (*only).to_owned(),
            [first, others @ ..] if others.iter().all(|other| other == first) => format!("{kind} {first}"),
            _ => kind.to_owned(),
        };
        (operation, names.len())
    }

    /// Appends its bytes. Returns the expected kind of each reply.
    pub(super) fn write(&self, outgoing: &mut WriteBuffer) -> SmallVec<[Expected; 4]> {
        let mut expected = SmallVec::new();
        for command in &self.0 {
            command.write(outgoing);
            expected.resize(expected.len() + command.replies, command.expected);
        }
        expected
    }
}

pub(super) fn ping() -> Command {
    Command::new("PING", Expected::Status)
}

/// Makes a cluster node execute the next command or transaction on a slot that it is importing.
pub(super) fn asking() -> Command {
    Command::new("ASKING", Expected::Status)
}

/// Asks for the owners of all slots.
pub(super) fn cluster_slots() -> Command {
    Command::new("CLUSTER", Expected::Anything).with("SLOTS")
}

/// Asks for the slots of the node itself, and those that it is moving.
pub(super) fn cluster_nodes() -> Command {
    Command::new("CLUSTER", Expected::Anything).with("NODES")
}

/// Makes the server know a script by its hash.
pub(super) fn load_script(text: &str) -> Command {
    Command::new("SCRIPT", Expected::Anything).with("LOAD").with(text)
}

const GET: &str = "GET";

pub(super) fn get(key: &str) -> Command {
    command(GET, key, Expected::Value)
}

pub(super) fn get_many(keys: &[&str]) -> Command {
    let expected = Expected::Values(u16::try_from(keys.len()).unwrap_or(u16::MAX));
    keys.iter().fold(Command::new("MGET", expected), Command::with)
}

pub(super) fn set(key: &str, value: &Bytes, ttl: Ttl, when: When) -> Result<Command> {
    let mut command = command("SET", key, Expected::Stored).with_value(value.clone());
    if let Some(duration) = ttl.duration()? {
        command = command.with("PX").with_number(milliseconds_rounded_up(duration));
    }
    Ok(match when {
        When::Always => command,
        When::IfAbsent => command.with("NX"),
        When::IfPresent => command.with("XX"),
    })
}

pub(super) fn unlink<K: AsRef<[u8]>>(keys: &[K]) -> Command {
    keys.iter().fold(Command::new("UNLINK", Expected::Number), Command::with)
}

pub(super) fn expire(key: &str, duration: Duration) -> Command {
    command("PEXPIRE", key, Expected::Number).with_number(milliseconds_rounded_up(duration))
}

/// Removes a key's time to live. The last reply is 1 if the key exists, else 0.
pub(super) fn persist(key: &str) -> [Command; 2] {
    [command("PERSIST", key, Expected::Number), command("EXISTS", key, Expected::Number)]
}

pub(super) fn ttl(key: &str) -> Command {
    command("PTTL", key, Expected::Number)
}

/// Creates an empty entry with the time to live if there is none, and appends.
pub(super) fn append(key: &str, value: &Bytes, ttl: Ttl) -> Result<[Command; 2]> {
    let create = set(key, &Bytes::new(), ttl, When::IfAbsent)?;
    Ok([create, command("APPEND", key, Expected::Number).with_value(value.clone())])
}

/// Creates a counter with the time to live if there is none, and adds to it.
pub(super) fn increment(key: &str, by: i64, ttl: Ttl) -> Result<[Command; 2]> {
    let create = set(key, &Bytes::from_static(b"0"), ttl, When::IfAbsent)?;
    Ok([create, command("INCRBY", key, Expected::Number).with_number(by)])
}

pub(super) fn scan(cursor: u64, pattern: &[u8]) -> Command {
    let command = Command::new("SCAN", Expected::Keys).with_number(cursor);
    command.with("MATCH").with(pattern).with("COUNT").with_number(SCAN_STEP)
}

/// Returns a pattern that matches the keys that start with `prefix`, with its special characters escaped.
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

/// The script of compare-and-set.
pub(super) struct CompareAndSet {
    script: Script,
}

impl CompareAndSet {
    /// Arguments:
    /// 1. whether an entry is expected;
    /// 2. its value;
    /// 3. whether there is a new value (if not, the entry is removed);
    /// 4. the new value;
    /// 5. its time to live in milliseconds, 0 if it does not expire.
    ///
    /// Returns 1, or 0 if the entry is not the expected one.
    pub(super) const TEXT: &'static str = r"
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

    /// Builds the command with the script's hash, which the server may not know yet.
    pub(super) fn by_hash(&self, key: &str, expected: Option<&[u8]>, new: Option<&Bytes>, ttl: Ttl) -> Result<Command> {
        arguments(command("EVALSHA", self.script.get_hash(), Expected::Number), key, expected, new, ttl)
    }

    /// Builds the command with the script's source. The server then knows the script by its hash.
    pub(super) fn by_source(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: Option<&Bytes>,
        ttl: Ttl,
    ) -> Result<Command> {
        arguments(command("EVAL", CompareAndSet::TEXT, Expected::Number), key, expected, new, ttl)
    }
}

fn arguments(script: Command, key: &str, expected: Option<&[u8]>, new: Option<&Bytes>, ttl: Ttl) -> Result<Command> {
    let milliseconds = ttl.duration()?.map_or(0, milliseconds_rounded_up);
    let script = script.with("1").with(key).with_flag(expected.is_some()).with(expected.unwrap_or_default());
    let script = script.with_flag(new.is_some()).with_value(new.cloned().unwrap_or_default());
    Ok(script.with_number(milliseconds))
}

fn command(name: &'static str, first: &str, expected: Expected) -> Command {
    Command::new(name, expected).with(first)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Expected, LARGE, Request, WriteBuffer, command, get, keys_that_start_with, ping};

    #[test]
    fn commands_are_packed_as_the_redis_crate_packs_them() {
        for length in [0, 9, 10, 100, LARGE, LARGE + 1] {
            let value = Bytes::from(vec![b'v'; length]);
            let mut ours = WriteBuffer::default();
            command("SET", "key", Expected::Stored).with_value(value.clone()).with_number(-7).write(&mut ours);
            let theirs = redis::cmd("SET").arg("key").arg(&value[..]).arg(-7).get_packed_command();
            assert_eq!(ours.len(), theirs.len());
            if length <= LARGE {
                assert_eq!(ours.buffer(), &theirs);
            }
        }
    }

    #[test]
    fn appended_gets_are_packed_one_after_the_other() {
        let mut gets = get("first");
        assert!(gets.append_get("second") && gets.append_get(""));
        let request = Request::several([gets, ping()]);
        assert_eq!(request.operation(), ("PIPELINE".to_owned(), 4));
        let mut ours = WriteBuffer::default();
        let expected = request.write(&mut ours);
        assert_eq!(expected[..], [Expected::Value, Expected::Value, Expected::Value, Expected::Status]);
        let mut theirs = redis::pipe();
        ["first", "second", ""].into_iter().for_each(|key| _ = theirs.cmd("GET").arg(key));
        assert_eq!(*ours.buffer(), theirs.cmd("PING").get_packed_pipeline());
        assert!(!ping().append_get("key"));
    }

    #[test]
    fn special_characters_of_a_prefix_are_escaped() {
        assert_eq!(keys_that_start_with("a*b?[c-d]^\\"), br"a\*b\?\[c\-d\]\^\\*");
        assert_eq!(keys_that_start_with(""), b"*");
    }
}
