//! The formats of values: MessagePack and JSON.

use std::error::Error as StdError;

use rmp_serde::config::BytesMode;
use rmp_serde::decode::{Error as Failure, ReadRefReader};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

mod from_str;

/// Maximum nesting of a value, the same as serde_json's: damaged bytes must not overflow a reader's stack.
pub(super) const DEEPEST: usize = 128;

/// Error of a value that a codec cannot write.
pub(super) type Unwritable = Box<dyn StdError + Send + Sync>;

/// The format in which values are stored. A value is read in the format it was written in, whatever the reader's codec.
///
/// A write fails with [`ErrorKind::Encode`](crate::ErrorKind::Encode) if the value would not be read back as it was: a
/// `Some(None)` or `Some(())`, which is read as `None`; a value nested 128 deep; with JSON, a number that is not finite.
/// Methods whose type is also read, such as [`fetch`](crate::Cache::fetch) and [`update`](crate::Cache::update), refuse
/// any other value that cannot be read back too, such as a `u128` in an untagged enum. An entry that a read cannot
/// decode is reported to [`Builder::on_error`](crate::Builder::on_error), once for each type.
///
/// In a configuration it is "messagepack" or "json", parsed by [`FromStr`](std::str::FromStr) and serde.
///
/// In MessagePack, a `Vec<u8>` is stored unchanged in a value without other byte strings (`u128`, `Uuid`,
/// `serde_bytes`). In a value that has some, it takes up to twice its length, unless it is a `serde_bytes::ByteBuf`. In
/// JSON, it takes up to four times its length. A value that is only bytes is best stored with
/// [`set_raw`](crate::Cache::set_raw).
///
/// ```
/// use prefork_cache::{Cache, Codec, stores::MemoryStore};
/// use std::{sync::Arc, time::Duration};
///
/// let store = Arc::new(MemoryStore::new());
/// let writer = Cache::builder(store.clone()).codec(Codec::Json).build();
/// let reader = Cache::builder(store).build();
/// writer.blocking().set("price", &100, Duration::from_secs(60))?;
/// assert_eq!(reader.blocking().get::<u32>("price")?, Some(100));
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// [MessagePack](https://msgpack.org), with structs as maps from field names. The default: compact and fast.
    #[default]
    MessagePack,
    /// JSON: readable on the server.
    Json,
}

impl Codec {
    pub(super) const fn number(self) -> u8 {
        match self {
            Codec::MessagePack => 1,
            Codec::Json => 2,
        }
    }

    pub(super) const fn of_number(number: u8) -> Option<Codec> {
        match number {
            1 => Some(Codec::MessagePack),
            2 => Some(Codec::Json),
            _ => None,
        }
    }
}

impl Codec {
    pub(super) fn write<T: Serialize + ?Sized>(self, value: &T, body: &mut Vec<u8>) -> Result<(), Unwritable> {
        match self {
            Codec::MessagePack => write_messagepack(value, body, BytesMode::Normal),
            Codec::Json => serde_json::to_writer(body, value).map_err(Into::into),
        }
    }

    pub(super) fn read<T: DeserializeOwned>(self, body: &[u8]) -> Option<T> {
        match self {
            Codec::MessagePack => {
                if nests_too_deep(body) {
                    return None;
                }
                let mut deserializer = bounded(body);
                let value = T::deserialize(&mut deserializer).ok()?;
                let is_at_end = matches!(<()>::deserialize(&mut deserializer), Err(Failure::InvalidMarkerRead(_)));
                is_at_end.then_some(value)
            }
            Codec::Json => serde_json::from_slice(body).ok(),
        }
    }
}

/// Writes MessagePack in which sequences of 8-bit numbers are byte strings.
pub(super) fn write_packed<T: Serialize + ?Sized>(value: &T, body: &mut Vec<u8>) -> Result<(), Unwritable> {
    write_messagepack(value, body, BytesMode::ForceIterables)
}

fn write_messagepack<T: Serialize + ?Sized>(value: &T, body: &mut Vec<u8>, bytes: BytesMode) -> Result<(), Unwritable> {
    let mut serializer = rmp_serde::Serializer::new(body).with_bytes(bytes).with_struct_map();
    value.serialize(&mut serializer).map_err(Into::into)
}

fn bounded(body: &[u8]) -> rmp_serde::Deserializer<ReadRefReader<'_, [u8]>> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(body);
    deserializer.set_max_depth(DEEPEST);
    deserializer
}

/// Returns whether enums are nested too deep, or the bytes are damaged. An enum is a map of one entry. rmp-serde does
/// not count these maps when it reads an enum, but does when it skips them. So if there are enough of them, everything
/// is skipped first. Each takes at least two bytes.
fn nests_too_deep(body: &[u8]) -> bool {
    if body.len() <= 2 * DEEPEST {
        return false;
    }
    let maps = body.iter().filter(|byte| matches!(byte, 0x81 | 0xDE | 0xDF)).count();
    maps > DEEPEST && IgnoredAny::deserialize(&mut bounded(body)).is_err()
}
