//! A batch of operations: builds one command for each operation, to be sent in one write, and interprets the replies.

use bytes::Bytes;
use redis::{Script, Value};

use super::commands::{self, Command, CompareAndSet, Expected};
use super::reply::Reply;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::net::Retry;
use crate::store::{Op, Outcome, Replacement, Settle, Ttl, check_key, milliseconds_rounded_up};

/// Builds the commands of one write. The first use of a script in a write sends its source, the others its hash, which
/// the server knows by then. So no reply needs another round trip, and the operations on a key stay in order.
pub(super) struct Commands<'a> {
    scripts: &'a Scripts,
    compare_and_set: ScriptUse,
    settle: ScriptUse,
    pub(super) commands: Vec<Command>,
}

/// How a write uses a script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ScriptUse {
    #[default]
    None,
    /// Once, by its source.
    Once,
    /// By its source, and then by its hash.
    Again,
}

impl ScriptUse {
    /// Records another use. Returns whether the write has the source already.
    fn next(&mut self) -> bool {
        let is_known = *self != ScriptUse::None;
        *self = if is_known { ScriptUse::Again } else { ScriptUse::Once };
        is_known
    }
}

/// The scripts of the operations for which the server has no command.
pub(super) struct Scripts {
    pub(super) compare_and_set: CompareAndSet,
    settle: SettleScript,
}

impl Scripts {
    pub(super) fn new() -> Scripts {
        Scripts { compare_and_set: CompareAndSet::new(), settle: SettleScript::new() }
    }
}

impl<'a> Commands<'a> {
    pub(super) fn new(scripts: &'a Scripts) -> Commands<'a> {
        let (compare_and_set, settle) = Default::default();
        Commands { scripts, compare_and_set, settle, commands: Vec::new() }
    }

    /// Returns commands that make the server know the scripts that the write runs by their hashes. A node of a cluster
    /// may redirect the command that has a script's source.
    pub(super) fn loads(&self) -> Vec<Command> {
        let scripts = [(self.compare_and_set, CompareAndSet::TEXT), (self.settle, SettleScript::TEXT)];
        let used_again = scripts.into_iter().filter(|(used, _)| *used == ScriptUse::Again);
        used_again.map(|(_, text)| commands::load_script(text)).collect()
    }

    /// Appends a get. Consecutive gets share one [`Command`].
    pub(super) fn push_get(&mut self, key: &str) {
        if !self.commands.last_mut().is_some_and(|before| before.append_get(key)) {
            self.commands.push(commands::get(key));
        }
    }

    /// Appends the command of an operation.
    pub(super) fn push(&mut self, operation: &Op<'_>) -> Result<()> {
        let command = match operation {
            Op::Get { key } => {
                self.push_get(key);
                return Ok(());
            }
            Op::Set { key, value, ttl, when } => commands::set(key, value, *ttl, *when)?,
            Op::Delete { key } => commands::unlink(&[*key]),
            Op::CompareAndSet { key, expected, new, ttl } => {
                let is_known = self.compare_and_set.next();
                let script = &self.scripts.compare_and_set;
                let build = if is_known { CompareAndSet::by_hash } else { CompareAndSet::by_source };
                build(script, key, *expected, new.as_ref(), *ttl)?
            }
            Op::Settle(settle) => {
                let is_known = self.settle.next();
                self.scripts.settle.command(settle, is_known)?
            }
        };
        self.commands.push(command);
        Ok(())
    }
}

/// The script that stores a loaded value and ends the lease, if the caller holds the lease.
struct SettleScript {
    script: Script,
}

impl SettleScript {
    /// Keys: the lease and the entry.
    ///
    /// Arguments:
    /// 1. the token that the lease begins with;
    /// 2. whether there is a value to store;
    /// 3. whether the value replaces an entry that the caller has read;
    /// 4. that entry;
    /// 5. the value to store;
    /// 6. its time to live in milliseconds, 0 if it does not expire;
    /// 7. the mark that replaces the lease;
    /// 8. its time to live in milliseconds, 0 if there is no mark.
    ///
    /// Returns 0 if the lease is not the caller's, 2 if the value was stored, and 1 otherwise.
    const TEXT: &'static str = r"
        local token = ARGV[1]
        local lease = redis.call('GET', KEYS[1])
        if not lease or string.sub(lease, 1, #token) ~= token then return 0 end
        if ARGV[8] == '0' then
            redis.call('UNLINK', KEYS[1])
        else
            redis.call('SET', KEYS[1], ARGV[7], 'PX', ARGV[8])
        end
        if ARGV[2] == '0' then return 1 end
        local held = redis.pcall('GET', KEYS[2])
        if ARGV[3] == '0' then
            if held then return 1 end
        elseif held and held ~= ARGV[4] then
            return 1
        end
        if ARGV[6] == '0' then
            redis.call('SET', KEYS[2], ARGV[5])
        else
            redis.call('SET', KEYS[2], ARGV[5], 'PX', ARGV[6])
        end
        return 2";

    fn new() -> SettleScript {
        SettleScript { script: Script::new(SettleScript::TEXT) }
    }

    fn command(&self, settle: &Settle<'_>, is_known: bool) -> Result<Command> {
        let command = match is_known {
            true => Command::new("EVALSHA", Expected::Number).with(self.script.get_hash()),
            false => Command::new("EVAL", Expected::Number).with(SettleScript::TEXT),
        };
        let (seen, value, ttl) = match &settle.store {
            Some(Replacement { seen, value, ttl }) => (*seen, Some(Bytes::clone(value)), *ttl),
            None => (None, None, Ttl::Never),
        };
        let command = command.with("2").with(settle.lease).with(settle.key).with(settle.token);
        let command = command.with_flag(value.is_some()).with_flag(seen.is_some()).with(seen.unwrap_or_default());
        let command = command.with_value(value.unwrap_or_default()).with_number(milliseconds(ttl)?);
        let (mark, ttl) = settle.mark.unwrap_or((&[], Ttl::Never));
        Ok(command.with(mark).with_number(milliseconds(ttl)?))
    }
}

fn milliseconds(ttl: Ttl) -> Result<u64> {
    Ok(ttl.duration()?.map_or(0, milliseconds_rounded_up))
}

/// Checks the keys, values and times to live of an operation. `check_value` checks a value against the server's limit.
pub(super) fn check(operation: &Op<'_>, check_value: impl Fn(&str, &[u8]) -> Result<()>) -> Result<()> {
    check_key(operation.key())?;
    match operation {
        Op::Set { key, value, ttl, .. } | Op::CompareAndSet { key, new: Some(value), ttl, .. } => {
            ttl.duration()?;
            check_value(key, value)
        }
        Op::Settle(Settle { key, lease, store, .. }) => {
            check_key(lease)?;
            let Some(Replacement { value, ttl, .. }) = store else { return Ok(()) };
            ttl.duration()?;
            check_value(key, value)
        }
        Op::Get { .. } | Op::Delete { .. } | Op::CompareAndSet { new: None, .. } => Ok(()),
    }
}

/// Returns the approximate size of an operation on the wire, in bytes.
pub(super) fn size(operation: &Op<'_>) -> usize {
    let value = match operation {
        Op::Set { value, .. } => value.len(),
        Op::CompareAndSet { expected, new, .. } => {
            expected.map_or(0, <[u8]>::len) + new.as_ref().map_or(0, bytes::Bytes::len)
        }
        Op::Settle(Settle { store: Some(store), .. }) => store.value.len() + store.seen.map_or(0, <[u8]>::len),
        Op::Get { .. } | Op::Delete { .. } | Op::Settle(_) => 0,
    };
    operation.key().len() + value
}

/// Converts the reply to an operation to its outcome.
pub(super) fn outcome(operation: &Op<'_>, reply: Value, endpoint: &Endpoint) -> Result<Outcome> {
    let reply = match operation {
        Op::Get { .. } => return Reply::read(reply, endpoint).map(Outcome::Value),
        Op::Set { .. } | Op::Delete { .. } => Reply::new(reply, endpoint)?,
        Op::CompareAndSet { .. } | Op::Settle(_) => {
            Reply::new(reply, endpoint).map_err(|error| script_error(endpoint, error))?
        }
    };
    if let Op::Set { .. } = operation {
        return reply.stored().map(Outcome::Done);
    }
    let number = reply.number()?;
    Ok(match operation {
        Op::Settle(_) => Outcome::Settled { was_held: number > 0, is_stored: number > 1 },
        _ => Outcome::Done(number != 0),
    })
}

/// Returns whether a batch may be sent twice: only if all its operations are reads.
pub(super) fn retry(mut are_reads: impl Iterator<Item = bool>) -> Retry {
    if are_reads.all(|is_read| is_read) { Retry::Idempotent } else { Retry::Never }
}

/// Adds the missing permission to the error of a script that the account may not run.
pub(super) fn script_error(endpoint: &Endpoint, error: Error) -> Error {
    if error.kind() != ErrorKind::Unsupported {
        return error;
    }
    let context = format!(
        "compare-and-set and leases run a script on {endpoint}, which this account may not run: it needs the permission \
         for EVAL and EVALSHA (+@scripting)"
    );
    Error::with_source(ErrorKind::Unsupported, context, error)
}
