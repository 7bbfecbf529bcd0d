//! The Redis serialization protocol (RESP), versions 2 and 3: finds the ends of frames, and parses them.
//!
//! Strings and the values that contain others are parsed here. A value that is one line is parsed by the redis crate.
//!
//! # States of a scan
//!
//! | state | the scan is | next |
//! | --- | --- | --- |
//! | `Line` | at the first byte of a header line | `Searched`, if the line is incomplete; `Value` or `Large`, at a string; `Line`, at a container; the end of a value |
//! | `Searched` | at a line in which no line end was found so far | as `Line` |
//! | `Value` | in a string of at most [`LARGE`] bytes (or any string of a push) | the end of a value, when the string is complete |
//! | `Large` | after a large string, which the caller takes out of the frame | the end of a value |
//!
//! At the end of a value the frame is complete if no container is open. Otherwise the scan continues with `Line`.

use std::iter::Peekable;
use std::vec::IntoIter;

use arrayvec::ArrayVec;
use redis::{RedisResult, Value, parse_redis_value};

use crate::net::{self, Frame, Framing, LARGE, Scan, short_length};

/// The maximum depth of nested values in a frame, and the maximum number of its values.
const MAX_DEPTH: usize = 32;
const MAX_VALUES: u64 = 1 << 20;

/// The maximum lengths of a header line and of a push, in bytes.
const MAX_LINE: usize = 64 << 10;
const MAX_PUSH: usize = 1 << 20;

/// Finds the ends of frames.
#[derive(Debug, Default)]
pub(super) struct RespFraming(Scanner);

/// The progress of the scan of a frame.
#[derive(Debug, Default)]
struct Scanner {
    /// The bytes before this position are scanned.
    position: usize,
    state: State,
    /// The containers of the next value, the outermost first.
    open: ArrayVec<Container, MAX_DEPTH>,
    values: u64,
    is_push: bool,
}

/// See the [table of states](self#states-of-a-scan).
#[derive(Debug, Default)]
enum State {
    #[default]
    Line,
    /// With the number of bytes that were searched for the line end.
    Searched(usize),
    /// With the position after the string's line end.
    Value {
        end: usize,
    },
    Large,
}

/// A value that contains others, and is not complete yet.
#[derive(Debug)]
struct Container {
    remaining: u64,
    /// An attribute is not a value: it precedes one.
    is_attribute: bool,
}

impl Framing for RespFraming {
    fn scan(&mut self, bytes: &[u8]) -> Result<Scan, String> {
        let scan = self.0.scan(bytes)?;
        if matches!(scan, Scan::Complete { .. } | Scan::Push { .. }) {
            self.0.reset();
        }
        Ok(scan)
    }
}

impl Scanner {
    /// Resets the fields one by one: a new `Scanner` is larger than most frames.
    fn reset(&mut self) {
        self.position = 0;
        self.state = State::Line;
        self.open.clear();
        self.values = 0;
        self.is_push = false;
    }

    fn scan(&mut self, bytes: &[u8]) -> Result<Scan, String> {
        loop {
            let searched = match self.state {
                State::Line => {
                    if let Some((header, length)) = short_string(&bytes[self.position..]) {
                        self.count()?;
                        self.position += header;
                        self.state = State::Value { end: self.position + length + 2 };
                        continue;
                    }
                    0
                }
                State::Searched(length) => length,
                State::Large => {
                    if self.end_value() {
                        break;
                    }
                    continue;
                }
                State::Value { end } if bytes.len() < end => return self.partial(bytes),
                State::Value { end } => {
                    if &bytes[end - 2..end] != b"\r\n" {
                        return Err("a value that does not end where it should".to_owned());
                    }
                    self.position = end;
                    if self.end_value() {
                        break;
                    }
                    continue;
                }
            };
            let line = &bytes[self.position..];
            let Some(length) = line[searched..].iter().position(|byte| *byte == b'\n') else {
                if line.len() > MAX_LINE {
                    return Err(format!("a line of more than {MAX_LINE} bytes"));
                }
                self.state = State::Searched(line.len());
                return self.partial(bytes);
            };
            let line = &line[..searched + length + 1];
            let place = self.position + line.len();
            let is_complete = self.header(line)?;
            self.position = place;
            match is_complete {
                Header::String(length) if length > MAX_PUSH && self.is_push => return Err(push_too_long()),
                // A push is discarded as a whole. A string taken out of it would become part of the next reply.
                Header::String(length) if length > LARGE && !self.is_push => {
                    self.state = State::Large;
                    return Ok(Scan::Large { place, length });
                }
                Header::String(length) => self.state = State::Value { end: place + length + 2 },
                Header::Container => self.state = State::Line,
                Header::Line if self.end_value() => break,
                Header::Line => {}
            }
        }
        let length = self.position;
        Ok(if self.is_push { Scan::Push { length } } else { Scan::Complete { length } })
    }

    fn partial(&self, bytes: &[u8]) -> Result<Scan, String> {
        if self.is_push && bytes.len() > MAX_PUSH {
            return Err(push_too_long());
        }
        Ok(Scan::Partial)
    }

    /// Parses the header line of a value.
    fn header(&mut self, line: &[u8]) -> Result<Header, String> {
        let malformed = || format!("{}, which is no reply", crate::net::show(line));
        let (kind, rest) = line.strip_suffix(b"\r\n").and_then(<[u8]>::split_first).ok_or_else(malformed)?;
        self.count()?;
        if matches!(kind, b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(') {
            return Ok(Header::Line);
        }
        let number = integer(rest).ok_or_else(malformed)?;
        let Ok(count) = u64::try_from(number) else {
            return if number == -1 && matches!(kind, b'$' | b'*') { Ok(Header::Line) } else { Err(malformed()) };
        };
        let (remaining, is_attribute) = match kind {
            b'$' | b'=' | b'!' => return usize::try_from(count).map(Header::String).map_err(|_| malformed()),
            b'*' | b'~' => (count, false),
            b'%' => (count.saturating_mul(2), false),
            b'|' => (count.saturating_mul(2), true),
            b'>' if self.open.is_empty() => {
                self.is_push = true;
                (count, false)
            }
            _ => return Err(malformed()),
        };
        if remaining == 0 {
            return Ok(if is_attribute { Header::Container } else { Header::Line });
        }
        let container = Container { remaining, is_attribute };
        self.open.try_push(container).map_err(|_| format!("a reply that is nested more than {MAX_DEPTH} deep"))?;
        Ok(Header::Container)
    }

    /// Counts a value.
    ///
    /// # Errors
    ///
    /// If the frame has too many.
    fn count(&mut self) -> Result<(), String> {
        self.values += 1;
        let is_bounded = self.values <= MAX_VALUES;
        if is_bounded { Ok(()) } else { Err(format!("a reply of more than {MAX_VALUES} values")) }
    }

    /// Ends a value, and the containers of which it is the last value. Returns whether the frame is complete.
    fn end_value(&mut self) -> bool {
        self.state = State::Line;
        while let Some(container) = self.open.last_mut() {
            container.remaining -= 1;
            if container.remaining > 0 {
                return false;
            }
            let is_attribute = container.is_attribute;
            self.open.pop();
            if is_attribute {
                return false;
            }
        }
        true
    }
}

fn push_too_long() -> String {
    format!("a push of more than {MAX_PUSH} bytes")
}

enum Header {
    /// The header of a string of this length.
    String(usize),
    /// The header of a value that contains others.
    Container,
    /// The line is the whole value.
    Line,
}

/// Parses the header of a string whose length has at most four digits, as most have. Returns the length of the header
/// and that of the string.
#[inline]
fn short_string(bytes: &[u8]) -> Option<(usize, usize)> {
    let (header, length) = short_length(bytes.strip_prefix(b"$")?)?;
    Some((b"$".len() + header, length))
}

/// Returns the value of a frame that is a short string, and the length of the frame, if `bytes` begins with all of it.
#[inline]
pub(super) fn short_value(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (value, length) = net::short_value(bytes.strip_prefix(b"$")?)?;
    Some((value, b"$".len() + length))
}

#[inline]
fn integer(digits: &[u8]) -> Option<i64> {
    let (is_negative, digits) = digits.strip_prefix(b"-").map_or((false, digits), |digits| (true, digits));
    if digits.is_empty() {
        return None;
    }
    let number = digits.iter().try_fold(0_i64, |number, digit| {
        let digit = i64::from(digit.wrapping_sub(b'0'));
        let digit = if digit > 9 { None } else { Some(digit) }?;
        // Counted downwards, since `i64::MIN` has no positive counterpart.
        number.checked_mul(10)?.checked_sub(digit)
    })?;
    if is_negative { Some(number) } else { number.checked_neg() }
}

/// The value that replaces a string that was too large to keep.
const TOO_LARGE: &[u8] = b"-TOOLARGE it is larger than max_value\r\n";

/// Parses a frame. Attributes are left out.
pub(super) fn value(frame: Frame<'_>) -> RedisResult<Value> {
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

#[cfg(test)]
mod tests {
    use redis::{Value, parse_redis_value};

    use super::{Frame, Framing, LARGE, MAX_PUSH, MAX_VALUES, RespFraming, Scan, integer, short_value, value};

    /// Returns the frames in `wire`, which arrives byte by byte, without pushes.
    fn frames(wire: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let mut framing = RespFraming::default();
        let mut frames = Vec::new();
        let (mut start, mut end) = (0, 0);
        while end < wire.len() {
            end += 1;
            match framing.scan(&wire[start..end])? {
                Scan::Partial => {}
                Scan::Large { .. } => panic!("none of them is large"),
                Scan::Push { length } => start += length,
                Scan::Complete { length } => {
                    frames.push(wire[start..start + length].to_vec());
                    start += length;
                }
            }
        }
        assert_eq!(start, end, "nothing is left of {}", wire.escape_ascii());
        Ok(frames)
    }

    const REPLIES: [&[u8]; 20] = [
        b"+OK\r\n",
        b"+QUEUED\r\n",
        b"-ERR no\r\n",
        b":-12\r\n",
        b"$5\r\n1\r\n23\r\n",
        b"$0\r\n\r\n",
        b"$-1\r\n",
        b"_\r\n",
        b"#t\r\n",
        b",1.5\r\n",
        b"(3492890328409238509324850943850943825024385\r\n",
        b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
        b"*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n$-1\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"~2\r\n+a\r\n_\r\n",
        b"%1\r\n+a\r\n*0\r\n",
        b"=7\r\ntxt:abc\r\n",
        b"!6\r\nERR no\r\n",
        b"*3\r\n%0\r\n*1\r\n*0\r\n#f\r\n",
    ];

    #[test]
    fn every_kind_of_reply_is_one_frame_and_is_parsed_like_the_redis_crate_does() {
        for reply in REPLIES {
            assert_eq!(frames(reply).unwrap(), [reply], "{}", reply.escape_ascii());
            assert_eq!(frames(&reply.repeat(3)).unwrap().len(), 3, "{}", reply.escape_ascii());
            let parsed = value(Frame { bytes: reply, large: Vec::new() });
            assert_eq!(parsed.unwrap(), parse_redis_value(reply).unwrap(), "{}", reply.escape_ascii());
        }
    }

    #[test]
    fn strings_of_any_length_are_framed_and_parsed() {
        for length in [0, 9, 10, 999, 9_999, 10_000, LARGE] {
            let string = [format!("${length}\r\n").as_bytes(), &vec![b'7'; length], b"\r\n"].concat();
            let array = [b"*2\r\n", string.as_slice(), b"$-1\r\n"].concat();
            for reply in [&string, &array] {
                assert_eq!(frames(&reply.repeat(2)).unwrap(), [reply.as_slice(), reply]);
                let parsed = value(Frame { bytes: reply, large: Vec::new() });
                assert_eq!(parsed.unwrap(), parse_redis_value(reply).unwrap());
            }
            let cut_short = [&string[..string.len() - 2], b"77"].concat();
            assert!(RespFraming::default().scan(&cut_short).unwrap_err().contains("does not end"), "{length}");
        }
    }

    #[test]
    fn short_values_are_the_strings_that_have_arrived_completely() {
        for reply in REPLIES {
            let is_string = reply.starts_with(b"$") && reply != b"$-1\r\n";
            let behind = [reply, b"+OK\r\n"].concat();
            for wire in [reply, &behind] {
                let expected = is_string.then(|| (&reply[4..reply.len() - 2], reply.len()));
                assert_eq!(short_value(wire), expected, "{}", wire.escape_ascii());
            }
            for end in 0..reply.len() {
                assert_eq!(short_value(&reply[..end]), None, "{}", reply[..end].escape_ascii());
            }
        }
        for wire in [&b"$3\r\nabc\n\r"[..], b"$10\r\nshort\r\n", b"$\r\n\r\n", b"$00001\r\na\r\n", b"$1\ra\r\n"] {
            assert_eq!(short_value(wire), None, "{}", wire.escape_ascii());
        }
        let longest = [b"$9999\r\n".as_slice(), &[b'x'; 9999], b"\r\n"].concat();
        assert_eq!(short_value(&longest).map(|(value, length)| (value.len(), length)), Some((9999, longest.len())));
    }

    #[test]
    fn an_attribute_belongs_to_the_value_that_follows() {
        let attribute = b"|1\r\n+a\r\n*1\r\n:1\r\n".as_slice();
        for reply in REPLIES {
            let with = [attribute, reply].concat();
            assert_eq!(frames(&with).unwrap(), [with.as_slice()], "{}", with.escape_ascii());
            let inside = [b"*2\r\n:7\r\n", attribute, reply].concat();
            assert_eq!(frames(&inside).unwrap().len(), 1, "{}", inside.escape_ascii());
            let expected = Value::Array(vec![Value::Int(7), parse_redis_value(reply).unwrap()]);
            assert_eq!(value(Frame { bytes: &inside, large: Vec::new() }).unwrap(), expected);
        }
    }

    #[test]
    fn many_attributes_in_a_row_are_left_out() {
        let wire = [b"|0\r\n".repeat(MAX_VALUES as usize - 1).as_slice(), b":1\r\n"].concat();
        assert_eq!(RespFraming::default().scan(&wire), Ok(Scan::Complete { length: wire.len() }));
        assert_eq!(value(Frame { bytes: &wire, large: Vec::new() }).unwrap(), Value::Int(1));
    }

    #[test]
    fn a_push_is_not_a_reply() {
        let pushes: [&[u8]; 3] = [b">0\r\n", b">1\r\n+a\r\n", b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"];
        for push in pushes {
            let wire = [push, b"+OK\r\n", push, push, b":1\r\n"].concat();
            assert_eq!(frames(&wire).unwrap(), [&b"+OK\r\n"[..], b":1\r\n"], "{}", push.escape_ascii());
        }
    }

    #[test]
    fn a_large_value_is_left_out_of_its_frame() {
        let length = LARGE + 1;
        let mut framing = RespFraming::default();
        let wire = format!("*2\r\n${length}\r\n$1\r\na\r\n");
        let place = wire.find("$1\r").unwrap();
        assert_eq!(framing.scan(&wire.as_bytes()[..place]), Ok(Scan::Large { place, length }));
        assert_eq!(framing.scan(wire.as_bytes()), Ok(Scan::Complete { length: wire.len() }));
        let frame = Frame { bytes: wire.as_bytes(), large: vec![(place, Some(vec![b'x'; length]))] };
        let expected = [Value::BulkString(vec![b'x'; length]), Value::BulkString(b"a".to_vec())];
        assert_eq!(value(frame).unwrap(), Value::Array(expected.into()));
    }

    #[test]
    fn a_push_is_discarded_as_a_whole() {
        let length = LARGE + 1;
        let push = [format!(">1\r\n${length}\r\n").as_bytes(), &vec![b'x'; length], b"\r\n"].concat();
        let mut framing = RespFraming::default();
        assert_eq!(framing.scan(&push), Ok(Scan::Push { length: push.len() }), "no string is taken out of it");
        let huge = format!(">1\r\n${}\r\n{}", 2 * MAX_PUSH, "x".repeat(MAX_PUSH));
        assert!(RespFraming::default().scan(huge.as_bytes()).unwrap_err().contains("a push of more"));
    }

    #[test]
    fn integers() {
        for number in [0, 1, -1, 42, i64::MAX, i64::MIN] {
            assert_eq!(integer(number.to_string().as_bytes()), Some(number));
        }
        for none in ["", "-", "+1", "1a", "--1", " 1", "9223372036854775808", "-9223372036854775809"] {
            assert_eq!(integer(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn malformed_and_unbounded_replies_are_refused() {
        let deep = "*1\r\n".repeat(40);
        let refused = [
            ("what\r\n", "no reply"),
            ("$x\r\n", "no reply"),
            ("$-2\r\n", "no reply"),
            ("$1\n", "no reply"),
            ("$?\r\n", "no reply"),
            ("*1\r\n>0\r\n", "no reply"),
            ("$1\r\nabc\r\n", "does not end"),
            ("$99999999999999999999\r\n", "no reply"),
            (&deep, "deep"),
            (&format!("+{}", "a".repeat(70_000)), "a line of more"),
            (&format!(">2000000\r\n{}", "$1\r\na\r\n".repeat(2_000_000)), "a push of more"),
            (&format!("*2000000\r\n{}", ":1\r\n".repeat(1 << 20)), "values"),
        ];
        for (wire, why) in refused {
            let mut framing = RespFraming::default();
            let mut outcome = Ok(Scan::Partial);
            for end in [1, 3, wire.len().min(1_100_000), wire.len()] {
                outcome = outcome.and_then(|_| framing.scan(&wire.as_bytes()[..end.min(wire.len())]));
            }
            let error = outcome.unwrap_err();
            assert!(error.contains(why), "{}: {error}", &wire[..wire.len().min(20)]);
        }
    }
}
