//! Values as bytes, in an envelope.
//!
//! Bytes of another program are no value of ours, but might decode to one: MessagePack reads the text "12" as the number 49.
//! So each value is in an envelope:
//!
//! | bytes | what |
//! | --- | --- |
//! | 3 | the magic number `C1 50 46`; MessagePack never begins with `C1`, Ruby's Marshal with `04 08`, Rails with `00 11` |
//! | 1 | how the body is encoded (bits 0 to 3: 1 MessagePack, 2 JSON) and what else there is (bit 7: a version) |
//! | 4 + n | with a version: its length and its text |
//! | 4 + n | the length of the body, and the body; nothing follows |
//!
//! Lengths are little-endian. A reader refuses what it does not know, so the other bits are free for the future.

use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

const MAGIC: [u8; 3] = [0xC1, b'P', b'F'];
const CODEC: u8 = 0x0F;
const HAS_VERSION: u8 = 0x80;

/// How deep a value may be nested to be read, as serde_json has it: damaged bytes must not exhaust the stack.
const DEEPEST: usize = 128;

/// How values become bytes. What was written with one is read with that one, whatever the reader's own.
///
/// A value that is nested some 128 deep or deeper is a miss when it is read.
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
    /// [MessagePack](https://msgpack.org), structures with the names of their fields. The default: small and fast.
    #[default]
    MessagePack,
    /// JSON: readable on the server.
    Json,
}

impl Codec {
    const fn number(self) -> u8 {
        match self {
            Codec::MessagePack => 1,
            Codec::Json => 2,
        }
    }

    const fn of_number(number: u8) -> Option<Codec> {
        match number {
            1 => Some(Codec::MessagePack),
            2 => Some(Codec::Json),
            _ => None,
        }
    }
}

pub(super) fn encode<T: Serialize + ?Sized>(
    codec: Codec,
    version: Option<&str>,
    key: &str,
    value: &T,
) -> Result<Bytes> {
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::with_source(ErrorKind::Encode, format!("encoding the value of {key:?}"), source)
    };
    let too_long = |_| refused("it has more than 4 GiB".into());
    let mut bytes = Vec::with_capacity(128);
    bytes.extend(MAGIC);
    bytes.push(codec.number() | if version.is_some() { HAS_VERSION } else { 0 });
    if let Some(version) = version {
        bytes.extend(u32::try_from(version.len()).map_err(too_long)?.to_le_bytes());
        bytes.extend(version.as_bytes());
    }
    let length_at = bytes.len();
    bytes.extend([0; 4]);
    match codec {
        Codec::MessagePack => value
            .serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map())
            .map_err(|error| refused(error.into()))?,
        Codec::Json => serde_json::to_writer(&mut bytes, value).map_err(|error| refused(error.into()))?,
    }
    let length = u32::try_from(bytes.len() - length_at - 4).map_err(too_long)?;
    bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes.into())
}

/// The value in an envelope of this version, if that is what the bytes are.
pub(super) fn decode<T: DeserializeOwned>(version: Option<&str>, bytes: &[u8]) -> Option<T> {
    let (magic, rest) = bytes.split_first_chunk()?;
    let (&format, mut rest) = rest.split_first()?;
    if *magic != MAGIC || format & !(CODEC | HAS_VERSION) != 0 {
        return None;
    }
    let written = if format & HAS_VERSION == 0 { None } else { Some(take_text(&mut rest)?) };
    if written != version.map(str::as_bytes) {
        return None;
    }
    let mut body = take_text(&mut rest).filter(|_| rest.is_empty())?;
    match Codec::of_number(format & CODEC)? {
        Codec::MessagePack => {
            if nests_too_deep(body) {
                return None;
            }
            let value = T::deserialize(&mut bounded(&mut body)).ok();
            value.filter(|_| body.is_empty())
        }
        Codec::Json => serde_json::from_slice(body).ok(),
    }
}

fn bounded<R: std::io::Read>(body: R) -> rmp_serde::Deserializer<rmp_serde::decode::ReadReader<R>> {
    let mut deserializer = rmp_serde::Deserializer::new(body);
    deserializer.set_max_depth(DEEPEST);
    deserializer
}

/// Whether enums are nested too deep, or the bytes are damaged. Each enum is a map of one entry, and rmp-serde does not
/// count those when it reads an enum. It does when it skips them: where there are enough of them, all is skipped first.
fn nests_too_deep(body: &[u8]) -> bool {
    let maps = body.iter().filter(|byte| matches!(byte, 0x81 | 0xDE | 0xDF)).count();
    maps > DEEPEST && IgnoredAny::deserialize(&mut bounded(body)).is_err()
}

/// A length and what it is the length of.
fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *bytes = rest;
    Some(text)
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::{Codec, decode, encode};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Widget {
        id: u64,
        name: String,
        parts: Vec<Option<f64>>,
    }

    fn widget() -> Widget {
        Widget { id: u64::MAX, name: "Zahnrad ⚙".into(), parts: vec![Some(0.1), None] }
    }

    #[test]
    fn what_goes_in_comes_out() {
        for codec in [Codec::MessagePack, Codec::Json] {
            for version in [None, Some(""), Some("7")] {
                let bytes = encode(codec, version, "k", &widget()).unwrap();
                assert_eq!(decode(version, &bytes), Some(widget()));
            }
        }
    }

    #[test]
    fn the_layout_stays_as_it_is() {
        assert_eq!(&*encode(Codec::MessagePack, None, "k", &1_u8).unwrap(), b"\xC1PF\x01\x01\0\0\0\x01");
        assert_eq!(&*encode(Codec::Json, Some("v2"), "k", &1_u8).unwrap(), b"\xC1PF\x82\x02\0\0\0v2\x01\0\0\x001");
    }

    #[test]
    fn another_version_is_no_value() {
        let bytes = encode(Codec::MessagePack, Some("1"), "k", &widget()).unwrap();
        assert_eq!(decode::<Widget>(Some("2"), &bytes), None);
        assert_eq!(decode::<Widget>(None, &bytes), None);
    }

    #[test]
    fn bare_bytes_and_other_programs_values_are_no_value() {
        for bytes in
            [&b""[..], b"12", b"\x31", b"\xC1", b"\xC1PF", b"\xC1PF\x01", b"\x04\x08i\x06", b"\xC1PF\x03\x01\0\0\0\x01"]
        {
            assert_eq!(decode::<u8>(None, bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn any_damage_to_the_frame_is_noticed() {
        let whole = encode(Codec::MessagePack, Some("v"), "k", &widget()).unwrap();
        for length in 0..whole.len() {
            assert_eq!(decode::<Widget>(Some("v"), &whole[..length]), None, "cut at {length}");
        }
        let mut longer = whole.to_vec();
        longer.push(0);
        assert_eq!(decode::<Widget>(Some("v"), &longer), None);
        let inner = encode(Codec::MessagePack, None, "k", &(1_u8, 2_u8)).unwrap();
        assert_eq!(decode::<(u8,)>(None, &inner), None, "a longer tuple");
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Tree {
        Leaf,
        Under(Box<Tree>),
        Around(Vec<Tree>),
    }

    fn trees(depth: usize) -> [Tree; 2] {
        let nest = |wrap: fn(Tree) -> Tree| (0..depth).fold(Tree::Leaf, |inner, _| wrap(inner));
        [nest(|inner| Tree::Under(Box::new(inner))), nest(|inner| Tree::Around(vec![inner]))]
    }

    #[test]
    fn nesting_has_a_bound_that_a_small_stack_bears() {
        for codec in [Codec::MessagePack, Codec::Json] {
            for tree in trees(60) {
                let bytes = encode(codec, None, "k", &tree).unwrap();
                assert_eq!(decode(None, &bytes), Some(tree));
            }
            for tree in trees(200) {
                let bytes = encode(codec, None, "k", &tree).unwrap();
                assert_eq!(decode::<Tree>(None, &bytes), None);
            }
        }
        let under = b"\x81\xA5Under".repeat(100_000);
        let frame = [&b"\xC1PF\x01"[..], &u32::try_from(under.len()).unwrap().to_le_bytes(), &under].concat();
        assert_eq!(decode::<Tree>(None, &frame), None);
        let many: Vec<Tree> = (0..500).map(|_| Tree::Under(Box::new(Tree::Leaf))).collect();
        let bytes = encode(Codec::MessagePack, None, "k", &many).unwrap();
        assert_eq!(decode(None, &bytes), Some(many), "many of them side by side are no depth");
    }

    #[test]
    fn what_cannot_be_encoded_is_an_error_that_names_the_key() {
        let unnamed = std::collections::HashMap::from([((1, 2), 3)]);
        let error = encode(Codec::Json, None, "odd", &unnamed).unwrap_err();
        assert_eq!(error.to_string(), "encoding the value of \"odd\"");
    }
}
