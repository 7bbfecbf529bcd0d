//! Checks a value before it is written for parts that would not be read back as they were.
//!
//! Both formats have only one null, so `Some(None)` would be read as `None`. JSON has no numbers that are not finite.
//! Every reader refuses values that are nested too deep. The writers of the formats report none of this as an error.

use std::fmt::{self, Display};

use serde::ser::{self, Serialize};

use super::codec::{Codec, DEEPEST};

/// The reason why a value is not written.
#[derive(Debug)]
pub(super) struct Unreadable(String);

/// Properties of a value, found before it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Whether it is written as null.
    is_nothing: bool,
    is_octet: bool,
    /// The number of 8-bit numbers in sequences.
    octets: usize,
    /// Whether a part of it is written as a byte string anyway.
    has_bytes: bool,
}

impl Seen {
    /// Returns whether its sequences of 8-bit numbers should be written as byte strings: there are enough of them, and
    /// no other byte strings that they could be confused with.
    pub(super) fn packs_octets(self) -> bool {
        const WORTH_IT: usize = 64;
        self.octets >= WORTH_IT && !self.has_bytes
    }
}

/// # Errors
///
/// The part of the value that would not be read back as it was.
pub(super) fn check<T: Serialize + ?Sized>(value: &T, codec: Codec) -> Result<Seen, Unreadable> {
    value.serialize(Check { codec, depth: 0 })
}

#[derive(Clone, Copy)]
struct Check {
    codec: Codec,
    depth: usize,
}

/// The parts of a compound value.
struct Parts {
    inside: Check,
    seen: Seen,
}

impl Check {
    /// Enters a compound value. The encoding of an enum takes a level of its own.
    fn inside(self, levels: usize) -> Result<Parts, Unreadable> {
        let depth = self.depth + levels;
        // The level of the innermost value is not counted.
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
