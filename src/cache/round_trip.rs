//! Looks at a value before it is written, for what would come back as another one, or not at all.
//!
//! Neither format has two kinds of nothing, so that `Some(None)` would be read as `None`; JSON has no numbers that are not
//! finite; and what is nested too deep is refused by every reader. None of that is an error to the writers of the formats.

use std::fmt::{self, Display};

use serde::ser::{self, Serialize};

use super::codec::{Codec, DEEPEST};

/// Why a value is not written.
#[derive(Debug)]
pub(super) struct Unreadable(String);

/// What there is to know of a value before it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// It is written as the format's nothing.
    is_nothing: bool,
    is_octet: bool,
    /// How many numbers of eight bits there are in sequences.
    octets: usize,
    /// Whether something is written as a byte string by itself.
    has_bytes: bool,
}

impl Seen {
    /// Whether its sequences of such numbers are worth being written as byte strings, and can be told from others.
    pub(super) fn packs_octets(self) -> bool {
        const WORTH_IT: usize = 64;
        self.octets >= WORTH_IT && !self.has_bytes
    }
}

/// # Errors
///
/// What in the value would not come back as it is.
pub(super) fn check<T: Serialize + ?Sized>(value: &T, codec: Codec) -> Result<Seen, Unreadable> {
    value.serialize(Check { codec, depth: 0 })
}

#[derive(Clone, Copy)]
struct Check {
    codec: Codec,
    depth: usize,
}

/// The parts of a value that has some.
struct Parts {
    inside: Check,
    seen: Seen,
}

impl Check {
    /// One level deeper. Written out, an enum is a level of its own.
    fn inside(self, levels: usize) -> Result<Parts, Unreadable> {
        let depth = self.depth + levels;
        // What is left out is the level of the innermost value.
        if depth >= DEEPEST {
            return Err(Unreadable(format!("it is nested more than {} deep", DEEPEST - 1)));
        }
        Ok(Parts { inside: Check { depth, ..self }, seen: PLAIN })
    }

    fn float(self, is_finite: bool) -> Result<Seen, Unreadable> {
        if self.codec == Codec::Json && !is_finite {
            return Err(Unreadable("it holds a number that is not finite, which JSON does not know".to_owned()));
        }
        Ok(PLAIN)
    }
}

impl Parts {
    #[inline]
    fn part<T: Serialize + ?Sized>(&mut self, part: &T) -> Result<(), Unreadable> {
        let part = part.serialize(self.inside)?;
        self.seen.octets += part.octets + usize::from(part.is_octet);
        self.seen.has_bytes |= part.has_bytes;
        Ok(())
    }
}

const PLAIN: Seen = Seen { is_nothing: false, is_octet: false, octets: 0, has_bytes: false };
const NOTHING: Seen = Seen { is_nothing: true, ..PLAIN };
const OCTET: Seen = Seen { is_octet: true, ..PLAIN };
const BYTES: Seen = Seen { has_bytes: true, ..PLAIN };

macro_rules! plain {
    ($($method:ident($type:ty) $seen:ident)+) => {$(
        #[inline]
        fn $method(self, _: $type) -> Result<Seen, Unreadable> {
            Ok($seen)
        }
    )+};
}

impl ser::Serializer for Check {
    type Ok = Seen;
    type Error = Unreadable;
    type SerializeSeq = Parts;
    type SerializeTuple = Parts;
    type SerializeTupleStruct = Parts;
    type SerializeTupleVariant = Parts;
    type SerializeMap = Parts;
    type SerializeStruct = Parts;
    type SerializeStructVariant = Parts;

    plain! {
        serialize_bool(bool) PLAIN
        serialize_i8(i8) PLAIN
        serialize_i16(i16) PLAIN
        serialize_i32(i32) PLAIN
        serialize_i64(i64) PLAIN
        serialize_i128(i128) BYTES
        serialize_u8(u8) OCTET
        serialize_u16(u16) PLAIN
        serialize_u32(u32) PLAIN
        serialize_u64(u64) PLAIN
        serialize_u128(u128) BYTES
        serialize_char(char) PLAIN
        serialize_str(&str) PLAIN
        serialize_bytes(&[u8]) BYTES
    }

    fn serialize_f32(self, number: f32) -> Result<Seen, Unreadable> {
        self.float(number.is_finite())
    }

    fn serialize_f64(self, number: f64) -> Result<Seen, Unreadable> {
        self.float(number.is_finite())
    }

    fn serialize_none(self) -> Result<Seen, Unreadable> {
        Ok(NOTHING)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Seen, Unreadable> {
        let seen = value.serialize(self)?;
        if seen.is_nothing {
            return Err(Unreadable("it holds a Some(None), or a Some(()), which would be read as a None".to_owned()));
        }
        Ok(seen)
    }

    fn serialize_unit(self) -> Result<Seen, Unreadable> {
        Ok(NOTHING)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Seen, Unreadable> {
        Ok(if self.codec == Codec::Json { NOTHING } else { PLAIN })
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<Seen, Unreadable> {
        Ok(PLAIN)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Seen, Unreadable> {
        if name == rmp_serde::MSGPACK_EXT_STRUCT_NAME {
            return Ok(BYTES);
        }
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<Seen, Unreadable> {
        let mut parts = self.inside(1)?;
        parts.part(value)?;
        Ok(parts.seen)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Parts, Unreadable> {
        self.inside(1)
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts, Unreadable> {
        self.inside(1)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Parts, Unreadable> {
        self.inside(1)
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Parts, Unreadable> {
        self.inside(2)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Parts, Unreadable> {
        self.inside(1)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Parts, Unreadable> {
        self.inside(1)
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Parts, Unreadable> {
        self.inside(2)
    }

    fn collect_str<T: Display + ?Sized>(self, _: &T) -> Result<Seen, Unreadable> {
        Ok(PLAIN)
    }

    fn is_human_readable(&self) -> bool {
        self.codec == Codec::Json
    }
}

macro_rules! parts {
    ($($trait:ident::$method:ident($($name:ty)?))+) => {$(
        impl ser::$trait for Parts {
            type Ok = Seen;
            type Error = Unreadable;

            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? part: &T) -> Result<(), Unreadable> {
                self.part(part)
            }

            fn end(self) -> Result<Seen, Unreadable> {
                Ok(self.seen)
            }
        }
    )+};
}

parts! {
    SerializeSeq::serialize_element()
    SerializeTuple::serialize_element()
    SerializeTupleStruct::serialize_field()
    SerializeTupleVariant::serialize_field()
    SerializeStruct::serialize_field(&'static str)
    SerializeStructVariant::serialize_field(&'static str)
}

impl ser::SerializeMap for Parts {
    type Ok = Seen;
    type Error = Unreadable;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unreadable> {
        self.part(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unreadable> {
        self.part(value)
    }

    fn end(self) -> Result<Seen, Unreadable> {
        Ok(self.seen)
    }
}

impl ser::Error for Unreadable {
    fn custom<T: Display>(message: T) -> Unreadable {
        Unreadable(message.to_string())
    }
}

impl Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}
