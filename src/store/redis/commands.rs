//! What is said to the server.

use std::time::Duration;

use bytes::Bytes;
use redis::{Arg, Cmd, Pipeline, Script, ToRedisArgs, cmd, pipe};

use crate::error::Result;
use crate::store::{Ttl, When, milliseconds_rounded_up};

/// How many keys a step of a scan looks at.
const SCAN_STEP: u32 = 1_000;

/// One command, or several in one round trip.
pub(super) enum Request {
    Command(Cmd),
    Pipeline(Pipeline),
}

impl Request {
    /// How many replies there will be.
    pub(super) fn len(&self) -> usize {
        match self {
            Request::Command(_) => 1,
            Request::Pipeline(pipeline) => pipeline.len(),
        }
    }

    /// What it is called in a trace, and of how many commands it consists besides MULTI and EXEC.
    pub(super) fn operation(&self) -> (String, usize) {
        let pipeline = match self {
            Request::Command(command) => return (name(command), 1),
            Request::Pipeline(pipeline) => pipeline,
        };
        let mut names: Vec<String> = pipeline.cmd_iter().map(name).collect();
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
    pub(super) fn write(&self, buffer: &mut Vec<u8>) {
        match self {
            Request::Command(command) => command.write_packed_command(buffer),
            Request::Pipeline(pipeline) => pipeline.cmd_iter().for_each(|command| command.write_packed_command(buffer)),
        }
    }
}

/// The command's name, and nothing of its arguments.
fn name(command: &Cmd) -> String {
    match command.args_iter().next() {
        Some(Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
        _ => String::new(),
    }
}

pub(super) fn ping() -> Cmd {
    cmd("PING")
}

pub(super) fn get(key: &str) -> Cmd {
    command("GET", key)
}

pub(super) fn get_many(keys: &[&str]) -> Cmd {
    keys.iter().fold(cmd("MGET"), |command, key| with(command, *key))
}

pub(super) fn set(key: &str, value: &[u8], ttl: Ttl, when: When) -> Result<Cmd> {
    let mut command = command("SET", key);
    command.arg(value);
    if let Some(duration) = ttl.duration()? {
        command.arg("PX").arg(milliseconds_rounded_up(duration));
    }
    match when {
        When::Always => {}
        When::IfAbsent => _ = command.arg("NX"),
        When::IfPresent => _ = command.arg("XX"),
    }
    Ok(command)
}

pub(super) fn set_many(entries: &[(&str, Bytes)], ttl: Ttl) -> Result<Pipeline> {
    let mut pipeline = pipe();
    for (key, value) in entries {
        pipeline.add_command(set(key, value, ttl, When::Always)?);
    }
    Ok(pipeline)
}

pub(super) fn unlink<K: ToRedisArgs>(keys: &[K]) -> Cmd {
    keys.iter().fold(cmd("UNLINK"), with)
}

pub(super) fn delete_many(keys: &[&str]) -> Pipeline {
    keys.iter().fold(pipe(), |mut pipeline, key| {
        pipeline.add_command(unlink(&[*key]));
        pipeline
    })
}

pub(super) fn expire(key: &str, duration: Duration) -> Cmd {
    with(command("PEXPIRE", key), milliseconds_rounded_up(duration))
}

/// Takes a key's time to live away; the last reply says whether there is such a key.
pub(super) fn persist(key: &str) -> [Cmd; 2] {
    [command("PERSIST", key), command("EXISTS", key)]
}

/// Creates the counter with its time to live unless it is there, and counts.
pub(super) fn increment(key: &str, by: i64, ttl: Ttl) -> Result<[Cmd; 2]> {
    Ok([set(key, b"0", ttl, When::IfAbsent)?, with(command("INCRBY", key), by)])
}

pub(super) fn scan(cursor: u64, pattern: &[u8]) -> Cmd {
    let mut command = cmd("SCAN");
    command.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_STEP);
    command
}

/// The commands between MULTI and EXEC. The last reply is the array of theirs.
pub(super) fn transaction(commands: impl IntoIterator<Item = Cmd>) -> Pipeline {
    let mut pipeline = pipe();
    pipeline.add_command(cmd("MULTI"));
    for command in commands {
        pipeline.add_command(command);
    }
    pipeline.add_command(cmd("EXEC"));
    pipeline
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

    pub(super) fn by_hash(&self, key: &str, expected: Option<&[u8]>, new: Option<&[u8]>, ttl: Ttl) -> Result<Cmd> {
        arguments(command("EVALSHA", self.script.get_hash()), key, expected, new, ttl)
    }

    /// For a server that does not know the script yet, and then does.
    pub(super) fn by_text(&self, key: &str, expected: Option<&[u8]>, new: Option<&[u8]>, ttl: Ttl) -> Result<Cmd> {
        arguments(command("EVAL", CompareAndSet::TEXT), key, expected, new, ttl)
    }
}

fn arguments(mut script: Cmd, key: &str, expected: Option<&[u8]>, new: Option<&[u8]>, ttl: Ttl) -> Result<Cmd> {
    let milliseconds = ttl.duration()?.map_or(0, milliseconds_rounded_up);
    script.arg(1).arg(key);
    for value in [expected, new] {
        script.arg(i32::from(value.is_some())).arg(value.unwrap_or_default());
    }
    script.arg(milliseconds);
    Ok(script)
}

fn command(name: &str, first: &str) -> Cmd {
    const OTHERS: usize = 4;
    let mut command = Cmd::with_capacity(2 + OTHERS, name.len() + first.len());
    command.arg(name).arg(first);
    command
}

fn with(mut command: Cmd, argument: impl ToRedisArgs) -> Cmd {
    command.arg(argument);
    command
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
