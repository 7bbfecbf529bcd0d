//! Commands on one key.

use bytes::Bytes;
use memcache::exp::{
    ArithmeticMode, ArithmeticOptions, DeleteOptions, Error as WireError, GetOptions, MetaCommand, SetMode, SetOptions,
    build_arithmetic, build_delete, build_get, build_set,
};

/// About the length of a command's line without its key, in bytes.
pub(super) const LINE: usize = 64;

/// A command on one key.
#[derive(Debug)]
pub(in crate::store::memcached) enum Command {
    Get,
    GetWithCas,
    Touch { expiry: u32 },
    TimeLeft,
    Append { value: Bytes },
    Set { value: Bytes, expiry: u32, condition: Condition },
    Delete { cas: Option<u64> },
    Count { step: Step, create: Option<Create> },
}

/// The condition of a [`Command::Set`].
#[derive(Clone, Copy, Debug)]
pub(in crate::store::memcached) enum Condition {
    Always,
    IfAbsent,
    IfPresent,
    IfUnchanged { cas: u64 },
}

/// The change of a counter.
#[derive(Clone, Copy, Debug)]
pub(in crate::store::memcached) enum Step {
    /// Adds, modulo 2^64.
    Up(u64),
    /// Subtracts, but not below 0.
    Down(u64),
}

/// The initial value of a missing counter. Without one, it is not created.
#[derive(Clone, Copy, Debug)]
pub(in crate::store::memcached) struct Create {
    pub(in crate::store::memcached) initial: u64,
    pub(in crate::store::memcached) expiry: u32,
}

/// The kind of reply that a command expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Value,
    ValueWithCas,
    Touched,
    TimeLeft,
    Stored,
    Deleted,
    Number,
}

impl Command {
    /// Returns about how many bytes the command has on the wire, without its key.
    pub(in crate::store::memcached) fn size(&self) -> usize {
        match self {
            Command::Set { value, .. } | Command::Append { value, .. } => LINE + value.len(),
            _ => LINE,
        }
    }

    /// Returns the name of the command in the text protocol.
    pub(in crate::store::memcached) fn verb(&self) -> &'static str {
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

    pub(super) fn expected(&self) -> Expected {
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

    /// Builds the command without its value.
    pub(super) fn build(&self, key: &[u8], token: u64) -> Result<MetaCommand, WireError> {
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
