//! Encoding and decoding of values in their envelope.

use std::any::type_name;
use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bytes_as_numbers::with_numbers;
use super::codec::{Codec, Unwritable, write_packed};
use super::envelope::{Envelope, Header, NoEnvelope, TooLong};
use super::freshness::Times;
use super::key::Mark;
use super::round_trip::{Unreadable, check};
use crate::error::{Error, ErrorKind, Result};

/// A decoded value.
#[derive(Debug)]
pub(super) struct Decoded<T> {
    pub(super) value: T,
    pub(super) times: Times,
}

/// Why the bytes of an entry are not a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum NoValue {
    /// Written by another program or under another version, or damaged.
    Other,
    /// Written under another key.
    Foreign,
    /// Of another type, or of a type that does not read what it writes.
    Unreadable,
}

impl From<NoEnvelope> for NoValue {
    fn from(no_envelope: NoEnvelope) -> NoValue {
        match no_envelope {
            NoEnvelope::Raw => NoValue::Other,
            NoEnvelope::Foreign => NoValue::Foreign,
        }
    }
}

pub(super) fn encode<T: Serialize + ?Sized>(header: Header<'_>, key: &str, value: &T) -> Result<Bytes> {
    let refused =
        |Refusal(source)| Error::with_source(ErrorKind::Encode, format!("encoding the value of {key:?}"), source);
    let seen = check(value, header.codec).map_err(|unreadable| refused(unreadable.into()))?;
    if header.codec == Codec::MessagePack && seen.packs_octets() {
        let packed = Header { packs_octets: true, ..header }.wrap(|body| write_packed(value, body).map_err(Refusal));
        // It fails for a sequence in which only the first element is such a number.
        if let Ok(packed) = packed {
            return Ok(packed);
        }
    }
    header.wrap(|body| header.codec.write(value, body).map_err(Refusal)).map_err(refused)
}

/// [`encode`] that also checks that the value can be read back.
pub(super) fn encode_readable<T: Serialize + DeserializeOwned>(
    header: Header<'_>,
    key: &str,
    value: &T,
) -> Result<Bytes> {
    let bytes = encode(header, key, value)?;
    if decode::<T>(header.mark, header.version, header.max_inflated, &bytes).is_err() {
        let context =
            format!("encoding the value of {key:?}: a {} cannot be read back from its encoding", type_name::<T>());
        return Err(Error::new(ErrorKind::Encode, context));
    }
    Ok(bytes)
}

/// Returns the value if the bytes were written under the key with this mark, and in this version.
pub(super) fn decode<T: DeserializeOwned>(
    mark: Mark,
    version: Option<&str>,
    max_inflated: usize,
    bytes: &[u8],
) -> Result<Decoded<T>, NoValue> {
    let envelope = Envelope::open(mark, bytes)?;
    if !envelope.is_of(version) {
        return Err(NoValue::Other);
    }
    let mut body = envelope.body(max_inflated).ok_or(NoValue::Other)?;
    if envelope.packs_octets
        && let Some(numbers) = with_numbers(&body)
    {
        body = Cow::Owned(numbers);
    }
    let value = envelope.codec.read(&body).ok_or(NoValue::Unreadable)?;
    Ok(Decoded { value, times: envelope.times.unwrap_or(Times::ALWAYS_FRESH) })
}

/// The reason why a value cannot be encoded.
struct Refusal(Unwritable);

impl From<TooLong> for Refusal {
    fn from(TooLong: TooLong) -> Refusal {
        Refusal("it has more than 4 GiB".into())
    }
}

impl From<Unreadable> for Refusal {
    fn from(unreadable: Unreadable) -> Refusal {
        Refusal(unreadable.into())
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::super::freshness::Times;
    use super::{Codec, Header, NoValue};

    const MARK: u32 = 0x0403_0201;

    fn header(codec: Codec, version: Option<&str>) -> Header<'_> {
        Header {
            codec,
            mark: MARK,
            times: None,
            version,
            packs_octets: false,
            compress_above: None,
            max_inflated: usize::MAX,
        }
    }

    fn encode<T: Serialize>(codec: Codec, version: Option<&str>, key: &str, value: &T) -> crate::Result<bytes::Bytes> {
        super::encode(header(codec, version), key, value)
    }

    fn decode<T: serde::de::DeserializeOwned>(version: Option<&str>, bytes: &[u8]) -> Option<T> {
        super::decode(MARK, version, 1 << 20, bytes).ok().map(|decoded| decoded.value)
    }

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
    fn values_round_trip() {
        for codec in [Codec::MessagePack, Codec::Json] {
            for version in [None, Some(""), Some("7")] {
                let bytes = encode(codec, version, "k", &widget()).unwrap();
                assert_eq!(decode(version, &bytes), Some(widget()));
            }
        }
    }

    #[test]
    fn the_layout_is_stable() {
        assert_eq!(
            &*encode(Codec::MessagePack, None, "k", &1_u8).unwrap(),
            b"\xC1PF\x01\x01\x02\x03\x04\x01\0\0\0\x01"
        );
        assert_eq!(
            &*encode(Codec::Json, Some("v2"), "k", &1_u8).unwrap(),
            b"\xC1PF\x82\x01\x02\x03\x04\x02\0\0\0v2\x01\0\0\x001"
        );
    }

    #[test]
    fn times_and_compression_round_trip() {
        let times = Times { refresh_from: 1, stale_from: 2, expired_from: 3 };
        let small = Header { times: Some(times), ..header(Codec::MessagePack, None) };
        let layout = b"\xC1PF\x41\x01\x02\x03\x04\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0\x01";
        assert_eq!(&*super::encode(small, "k", &1_u8).unwrap(), layout);
        let text = "a widget, ".repeat(100);
        for (compress_above, longest) in [(None, 1_100), (Some(2_000), 1_100), (Some(900), 100)] {
            let bytes = super::encode(Header { compress_above, ..small }, "k", &text).unwrap();
            assert!(bytes.len() < longest, "{} bytes above {compress_above:?}", bytes.len());
            let read = super::decode::<String>(MARK, None, 1 << 20, &bytes).unwrap();
            assert_eq!((read.value, read.times), (text.clone(), times));
            let bounded = super::decode::<String>(MARK, None, 1_000, &bytes);
            assert_eq!(bounded.is_err(), compress_above == Some(900), "only a compressed value is bounded");
        }
    }

    #[test]
    fn times_can_be_added_and_removed() {
        let times = Times { refresh_from: 1, stale_from: 2, expired_from: 3 };
        for version in [None, Some("7")] {
            let untimed = encode(Codec::Json, version, "k", &widget()).unwrap();
            let timed = super::super::envelope::with_times(&untimed, Some(times));
            let read = super::decode::<Widget>(MARK, version, 0, &timed).unwrap();
            assert_eq!((read.value, read.times), (widget(), times));
            assert_eq!(super::super::envelope::with_times(&timed, None), untimed);
        }
    }

    #[test]
    fn a_value_of_another_version_is_not_decoded() {
        let bytes = encode(Codec::MessagePack, Some("1"), "k", &widget()).unwrap();
        assert_eq!(decode::<Widget>(Some("2"), &bytes), None);
        assert_eq!(decode::<Widget>(None, &bytes), None);
    }

    #[test]
    fn raw_bytes_and_values_of_other_programs_are_not_decoded() {
        for bytes in [
            &b""[..],
            b"12",
            b"\x31",
            b"\xC1",
            b"\xC1PF",
            b"\xC1PF\x01",
            b"\x04\x08i\x06",
            b"\xC1PF\x03\x01\x02\x03\x04\x01\0\0\0\x01",
        ] {
            assert_eq!(decode::<u8>(None, bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn any_damage_to_the_envelope_is_noticed() {
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
    fn deep_nesting_is_refused_and_fits_a_small_stack() {
        for codec in [Codec::MessagePack, Codec::Json] {
            for tree in trees(60) {
                let bytes = encode(codec, None, "k", &tree).unwrap();
                assert_eq!(decode(None, &bytes), Some(tree));
            }
            for tree in trees(200) {
                let error = encode(codec, None, "k", &tree).unwrap_err();
                assert_eq!(format!("{error:#}"), "encoding the value of \"k\": it is nested more than 127 deep");
                let mut body = Vec::new();
                assert!(codec.write(&tree, &mut body).is_ok());
                assert_eq!(codec.read::<Tree>(&body), None);
            }
        }
        let under = b"\x81\xA5Under".repeat(100_000);
        let frame =
            [&b"\xC1PF\x01\x01\x02\x03\x04"[..], &u32::try_from(under.len()).unwrap().to_le_bytes(), &under].concat();
        assert_eq!(decode::<Tree>(None, &frame), None);
        let many: Vec<Tree> = (0..500).map(|_| Tree::Under(Box::new(Tree::Leaf))).collect();
        let bytes = encode(Codec::MessagePack, None, "k", &many).unwrap();
        assert_eq!(decode(None, &bytes), Some(many), "siblings do not count as depth");
    }

    #[test]
    fn a_vec_of_bytes_is_stored_as_a_byte_string() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(untagged)]
        enum Content {
            Text(String),
            Bytes(Vec<u8>),
            Mixed(Vec<Content>),
            Number(u8),
        }
        let image = (String::from("logo"), vec![0xFF_u8; 10_000]);
        let bytes = encode(Codec::MessagePack, None, "k", &image).unwrap();
        assert!(bytes.len() < 10_050, "{} bytes", bytes.len());
        assert_eq!(decode(None, &bytes), Some(image));
        for content in [
            Content::Bytes(b"a text, as it were".repeat(10)),
            Content::Bytes(vec![0xFF; 100]),
            Content::Mixed((0..100).map(Content::Number).chain([Content::Text("x".into())]).collect()),
        ] {
            let bytes = encode(Codec::MessagePack, None, "k", &content).unwrap();
            assert_eq!(decode(None, &bytes), Some(content));
        }
        let beside_a_wide_integer = (u128::MAX, vec![7_u8; 100]);
        let bytes = encode(Codec::MessagePack, None, "k", &beside_a_wide_integer).unwrap();
        assert_eq!(decode(None, &bytes), Some(beside_a_wide_integer));
    }

    #[test]
    fn a_value_of_another_key_is_foreign() {
        let bytes = encode(Codec::MessagePack, None, "k", &1_u8).unwrap();
        let opened = super::decode::<u8>(MARK + 1, None, 0, &bytes);
        assert_eq!(opened.map(|decoded| decoded.value), Err(NoValue::Foreign));
    }

    #[test]
    fn the_error_of_an_unencodable_value_names_the_key() {
        let unnamed = std::collections::HashMap::from([((1, 2), 3)]);
        let error = encode(Codec::Json, None, "odd", &unnamed).unwrap_err();
        assert_eq!(error.to_string(), "encoding the value of \"odd\"");
    }
}
