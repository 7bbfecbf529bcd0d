//! The parser of complete frames.

use std::iter::Peekable;
use std::vec::IntoIter;

use redis::{RedisResult, Value, parse_redis_value};

use super::{integer, short_string};
use crate::net::Frame;

/// The value that replaces a string that was too large to keep.
const TOO_LARGE: &[u8] = b"-TOOLARGE it is larger than max_value\r\n";

/// Parses a frame. Attributes are left out.
pub(in crate::store::redis) fn value(frame: Frame<'_>) -> RedisResult<Value> {
    if let Some((header, length)) = short_string(frame.bytes) {
        return Ok(Value::BulkString(frame.bytes[header..header + length].to_vec()));
    }
    Values { bytes: frame.bytes, position: 0, large: frame.large.into_iter().peekable() }.next()
}

/// A parser of the values in a frame.
struct Values<'a> {
    bytes: &'a [u8],
    position: usize,
    large: Peekable<IntoIter<(usize, Option<Vec<u8>>)>>,
}

impl<'a> Values<'a> {
    fn next(&mut self) -> RedisResult<Value> {
        if let Some((header, length)) = short_string(&self.bytes[self.position..]) {
            let start = self.position + header;
            self.position = start + length + 2;
            return Ok(Value::BulkString(self.bytes[start..start + length].to_vec()));
        }
        let mut line = self.line();
        while let [b'|', count @ .., _, _] = line {
            self.pairs(integer(count).and_then(|count| usize::try_from(count).ok()).unwrap_or(0))?;
            line = self.line();
        }
        let (Some(kind), Some(number)) = (line.first(), line.get(1..line.len().saturating_sub(2)).and_then(integer))
        else {
            return if line == b"+OK\r\n" { Ok(Value::Okay) } else { parse_redis_value(line) };
        };
        let count = usize::try_from(number);
        Ok(match (kind, count) {
            (b':', _) => Value::Int(number),
            (b'$', Ok(length)) => match self.string(length) {
                Some(value) => Value::BulkString(value),
                None => parse_redis_value(TOO_LARGE)?,
            },
            (b'*', Ok(count)) => Value::Array(self.several(count)?),
            (b'~', Ok(count)) => Value::Set(self.several(count)?),
            (b'%', Ok(count)) => Value::Map(self.pairs(count)?),
            (b'=' | b'!', Ok(length)) => match self.string(length) {
                Some(value) => parse_redis_value(&[line, &value, b"\r\n"].concat())?,
                None => parse_redis_value(TOO_LARGE)?,
            },
            (b'$' | b'*', Err(_)) => Value::Nil,
            _ => parse_redis_value(line)?,
        })
    }

    fn line(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1);
        self.position += length;
        &rest[..length]
    }

    /// Returns a string of this length, or `None` if it was too large to keep.
    fn string(&mut self, length: usize) -> Option<Vec<u8>> {
        if let Some((_, value)) = self.large.next_if(|(place, _)| *place == self.position) {
            return value;
        }
        let start = self.position;
        self.position += length + 2;
        Some(self.bytes[start..start + length].to_vec())
    }

    fn several(&mut self, count: usize) -> RedisResult<Vec<Value>> {
        (0..count).map(|_| self.next()).collect()
    }

    fn pairs(&mut self, count: usize) -> RedisResult<Vec<(Value, Value)>> {
        (0..count).map(|_| Ok((self.next()?, self.next()?))).collect()
    }
}
