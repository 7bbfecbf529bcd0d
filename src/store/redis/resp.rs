//! Redis's serialization protocol, versions 2 and 3: where its frames end, and what is in them.
//!
//! Strings are cut here, and whatever contains them; a line that is a value of its own is parsed by the redis crate.

use std::iter::Peekable;
use std::vec::IntoIter;

use arrayvec::ArrayVec;
use redis::{RedisResult, Value, parse_redis_value};

use crate::net::{Frame, Framing, LARGE, Scan};

/// How deep, and of how many values, a frame may be.
const DEEPEST: usize = 32;
const MOST_VALUES: u64 = 1 << 20;

const LONGEST_LINE: usize = 64 << 10;
const LONGEST_PUSH: usize = 1 << 20;

/// Where a frame ends.
#[derive(Debug, Default)]
pub(super) struct RespFraming(Scanned);

/// What was seen of a frame.
#[derive(Debug, Default)]
struct Scanned {
    /// All before this was seen.
    position: usize,
    state: State,
    /// The values that contain the next one.
    open: ArrayVec<Open, DEEPEST>,
    values: u64,
    is_push: bool,
}

#[derive(Debug, Default)]
enum State {
    /// At a line, of which so much was searched for its end.
    #[default]
    Line,
    Searched(usize),
    /// In a small value, up to there.
    Value {
        end: usize,
    },
    /// Behind a large value.
    Large,
}

#[derive(Debug)]
struct Open {
    left: u64,
    /// An attribute is no value of its own: it comes before one.
    is_attribute: bool,
}

impl Framing for RespFraming {
    fn scan(&mut self, bytes: &[u8]) -> Result<Scan, String> {
        let scan = self.0.go_on(bytes)?;
        if matches!(scan, Scan::Complete { .. } | Scan::Unasked { .. }) {
            self.0.start_over();
        }
        Ok(scan)
    }
}

impl Scanned {
    /// In place: the whole of it is larger than most frames.
    fn start_over(&mut self) {
        self.position = 0;
        self.state = State::Line;
        self.open.clear();
        self.values = 0;
        self.is_push = false;
    }

    fn go_on(&mut self, bytes: &[u8]) -> Result<Scan, String> {
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
                    if self.ends_value() {
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
                    if self.ends_value() {
                        break;
                    }
                    continue;
                }
            };
            let line = &bytes[self.position..];
            let Some(length) = line[searched..].iter().position(|byte| *byte == b'\n') else {
                if line.len() > LONGEST_LINE {
                    return Err(format!("a line of more than {LONGEST_LINE} bytes"));
                }
                self.state = State::Searched(line.len());
                return self.partial(bytes);
            };
            let line = &line[..searched + length + 1];
            let place = self.position + line.len();
            let is_complete = self.header(line)?;
            self.position = place;
            match is_complete {
                Header::Value(length) if length > LONGEST_PUSH && self.is_push => return Err(push_too_long()),
                // A push is dropped as it is; what is taken out would be the next reply's.
                Header::Value(length) if length > LARGE && !self.is_push => {
                    self.state = State::Large;
                    return Ok(Scan::Large { place, length });
                }
                Header::Value(length) => self.state = State::Value { end: place + length + 2 },
                Header::Open => self.state = State::Line,
                Header::Whole if self.ends_value() => break,
                Header::Whole => {}
            }
        }
        let length = self.position;
        Ok(if self.is_push { Scan::Unasked { length } } else { Scan::Complete { length } })
    }

    fn partial(&self, bytes: &[u8]) -> Result<Scan, String> {
        if self.is_push && bytes.len() > LONGEST_PUSH {
            return Err(push_too_long());
        }
        Ok(Scan::Partial)
    }

    fn header(&mut self, line: &[u8]) -> Result<Header, String> {
        let malformed = || format!("{}, which is no reply", crate::net::show(line));
        let (kind, rest) = line.strip_suffix(b"\r\n").and_then(<[u8]>::split_first).ok_or_else(malformed)?;
        self.count()?;
        if matches!(kind, b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(') {
            return Ok(Header::Whole);
        }
        let number = integer(rest).ok_or_else(malformed)?;
        let Ok(count) = u64::try_from(number) else {
            return if number == -1 && matches!(kind, b'$' | b'*') { Ok(Header::Whole) } else { Err(malformed()) };
        };
        let (left, is_attribute) = match kind {
            b'$' | b'=' | b'!' => return usize::try_from(count).map(Header::Value).map_err(|_| malformed()),
            b'*' | b'~' => (count, false),
            b'%' => (count.saturating_mul(2), false),
            b'|' => (count.saturating_mul(2), true),
            b'>' if self.open.is_empty() => {
                self.is_push = true;
                (count, false)
            }
            _ => return Err(malformed()),
        };
        if left == 0 {
            return Ok(if is_attribute { Header::Open } else { Header::Whole });
        }
        let open = Open { left, is_attribute };
        self.open.try_push(open).map_err(|_| format!("a reply that is more than {DEEPEST} deep"))?;
        Ok(Header::Open)
    }

    fn count(&mut self) -> Result<(), String> {
        self.values += 1;
        let is_bounded = self.values <= MOST_VALUES;
        if is_bounded { Ok(()) } else { Err(format!("a reply of more than {MOST_VALUES} values")) }
    }

    /// A value has ended. Returns whether the frame has.
    fn ends_value(&mut self) -> bool {
        self.state = State::Line;
        while let Some(open) = self.open.last_mut() {
            open.left -= 1;
            if open.left > 0 {
                return false;
            }
            let is_attribute = open.is_attribute;
            self.open.pop();
            if is_attribute {
                return false;
            }
        }
        true
    }
}

fn push_too_long() -> String {
    format!("a push of more than {LONGEST_PUSH} bytes")
}

enum Header {
    /// A string of this length follows.
    Value(usize),
    /// Others follow that belong to it.
    Open,
    /// It is a value of its own.
    Whole,
}

/// The lengths of the header of a string of at most four digits, which most values are, and of the string.
#[inline]
fn short_string(bytes: &[u8]) -> Option<(usize, usize)> {
    let digits = bytes.strip_prefix(b"$")?;
    let count = digits.iter().take(5).take_while(|byte| byte.is_ascii_digit()).count();
    let is_header = (1..=4).contains(&count) && digits[count..].starts_with(b"\r\n");
    is_header.then(|| {
        let length = digits[..count].iter().fold(0, |length, digit| 10 * length + usize::from(digit - b'0'));
        (b"$".len() + count + b"\r\n".len(), length)
    })
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
        // Downwards, since there is one negative number more.
        number.checked_mul(10)?.checked_sub(digit)
    })?;
    if is_negative { Some(number) } else { number.checked_neg() }
}

/// What stands in the place of a value that was not kept.
const TOO_LARGE: &[u8] = b"-TOOLARGE it is larger than max_value\r\n";

/// What is in a frame. An attribute is left out.
pub(super) fn value(frame: Frame<'_>) -> RedisResult<Value> {
    if let Some((header, length)) = short_string(frame.bytes) {
        return Ok(Value::BulkString(frame.bytes[header..header + length].to_vec()));
    }
    Values { bytes: frame.bytes, position: 0, large: frame.large.into_iter().peekable() }.next()
}

/// The values in a frame, one after the other.
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
        let length = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |place| place + 1);
        self.position += length;
        &rest[..length]
    }

    /// Nothing, if it was not kept.
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

    use super::{Frame, Framing, LARGE, LONGEST_PUSH, MOST_VALUES, RespFraming, Scan, integer, value};

    /// The frames in `wire`, which arrives byte by byte; those that were sent unasked are left out.
    fn frames(wire: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let mut framing = RespFraming::default();
        let mut frames = Vec::new();
        let (mut start, mut end) = (0, 0);
        while end < wire.len() {
            end += 1;
            match framing.scan(&wire[start..end])? {
                Scan::Partial => {}
                Scan::Large { .. } => panic!("none of them is large"),
                Scan::Unasked { length } => start += length,
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
    fn every_kind_of_reply_is_one_frame_and_is_read_as_the_redis_crate_reads_it() {
        for reply in REPLIES {
            assert_eq!(frames(reply).unwrap(), [reply], "{}", reply.escape_ascii());
            assert_eq!(frames(&reply.repeat(3)).unwrap().len(), 3, "{}", reply.escape_ascii());
            let cut = value(Frame { bytes: reply, large: Vec::new() });
            assert_eq!(cut.unwrap(), parse_redis_value(reply).unwrap(), "{}", reply.escape_ascii());
        }
    }

    #[test]
    fn a_string_is_cut_and_read_whatever_the_digits_of_its_length() {
        for length in [0, 9, 10, 999, 9_999, 10_000, LARGE] {
            let string = [format!("${length}\r\n").as_bytes(), &vec![b'7'; length], b"\r\n"].concat();
            let array = [b"*2\r\n", string.as_slice(), b"$-1\r\n"].concat();
            for reply in [&string, &array] {
                assert_eq!(frames(&reply.repeat(2)).unwrap(), [reply.as_slice(), reply]);
                let cut = value(Frame { bytes: reply, large: Vec::new() });
                assert_eq!(cut.unwrap(), parse_redis_value(reply).unwrap());
            }
            let cut_short = [&string[..string.len() - 2], b"77"].concat();
            assert!(RespFraming::default().scan(&cut_short).unwrap_err().contains("does not end"), "{length}");
        }
    }

    #[test]
    fn an_attribute_belongs_to_the_value_behind_it() {
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
        let wire = [b"|0\r\n".repeat(MOST_VALUES as usize - 1).as_slice(), b":1\r\n"].concat();
        assert_eq!(RespFraming::default().scan(&wire), Ok(Scan::Complete { length: wire.len() }));
        assert_eq!(value(Frame { bytes: &wire, large: Vec::new() }).unwrap(), Value::Int(1));
    }

    #[test]
    fn what_the_server_says_unasked_is_no_reply() {
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
    fn nothing_of_what_the_server_says_unasked_is_kept() {
        let length = LARGE + 1;
        let push = [format!(">1\r\n${length}\r\n").as_bytes(), &vec![b'x'; length], b"\r\n"].concat();
        let mut framing = RespFraming::default();
        assert_eq!(framing.scan(&push), Ok(Scan::Unasked { length: push.len() }), "no value is taken out of it");
        let huge = format!(">1\r\n${}\r\n{}", 2 * LONGEST_PUSH, "x".repeat(LONGEST_PUSH));
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
    fn what_is_no_reply_or_without_a_bound_is_refused() {
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
