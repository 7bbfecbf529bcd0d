//! The frames of Memcached's protocols. A frame ends after a line, or after the value whose length the line gives.
//!
//! | state | the bytes so far are | next |
//! | --- | --- | --- |
//! | `Line` | a part of a line | complete; `Value`; or `Large`, when the line gives the length of a large value |
//! | `Value` | a line and a part of its small value | complete |
//! | `Large` | a line; the large value is read elsewhere | complete |

use memchr::memchr;

use crate::net::{Framing, LARGE, Scan, show};

const LONGEST_LINE: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct LineFraming(State);

#[derive(Debug)]
enum State {
    /// In a line. The first `searched` bytes contain no line end.
    Line { searched: usize },
    /// In a small value. The frame ends at `end`.
    Value { end: usize },
    /// After a large value, which is not among the bytes. The line ends at `line_end`.
    Large { line_end: usize },
}

impl LineFraming {
    pub(super) fn new() -> LineFraming {
        LineFraming(State::Line { searched: 0 })
    }

    fn complete(&mut self, length: usize) -> Scan {
        self.0 = State::Line { searched: 0 };
        Scan::Complete { length }
    }
}

impl Framing for LineFraming {
    fn scan(&mut self, bytes: &[u8]) -> Result<Scan, String> {
        let end = match self.0 {
            State::Large { line_end } => return Ok(self.complete(line_end)),
            State::Value { end } => end,
            State::Line { searched } => {
                let Some(length) = memchr(b'\n', &bytes[searched..]) else {
                    self.0 = State::Line { searched: bytes.len() };
                    let is_bounded = bytes.len() <= LONGEST_LINE;
                    return if is_bounded { Ok(Scan::Partial) } else { Err("a line that is too long".to_owned()) };
                };
                let line_end = searched + length + 1;
                match announced(&bytes[..line_end])? {
                    None => return Ok(self.complete(line_end)),
                    Some(length) if length > LARGE => {
                        self.0 = State::Large { line_end };
                        return Ok(Scan::Large { place: line_end, length });
                    }
                    Some(length) => line_end + length + 2,
                }
            }
        };
        self.0 = State::Value { end };
        match bytes.get(end - 2..end) {
            None => Ok(Scan::Partial),
            Some(b"\r\n") => Ok(self.complete(end)),
            Some(_) => Err("a value that does not end where it should".to_owned()),
        }
    }
}

/// Returns the length of the value that follows a line `VA <length> ...` or `VALUE <key> <flags> <length>`.
fn announced(line: &[u8]) -> Result<Option<usize>, String> {
    let mut words = without_end(line).split(|byte| *byte == b' ');
    let digits = match line {
        [b'V', b'A', b' ', ..] => words.nth(1),
        // The length is the last word.
        [b'V', b'A', b'L', b'U', b'E', b' ', ..] => words.next_back(),
        _ => return Ok(None),
    };
    let digits = digits.unwrap_or_default();
    let length = digits.iter().try_fold(0_usize, |length, digit| match digit {
        b'0'..=b'9' => length.checked_mul(10)?.checked_add(usize::from(digit - b'0')),
        _ => None,
    });
    let length = length.filter(|_| !digits.is_empty());
    length.map(Some).ok_or_else(|| format!("{}, which is no reply", show(line)))
}

/// Returns the value of a frame `VALUE <key> <flags> <length>` with this key, and the length of the frame, if `bytes`
/// begins with all of it and the length has at most four digits.
pub(super) fn short_value<'b>(bytes: &'b [u8], key: &[u8]) -> Option<(&'b [u8], usize)> {
    let flags = bytes.strip_prefix(b"VALUE ")?.strip_prefix(key)?.strip_prefix(b" ")?;
    let digits = flags.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (value, length) = crate::net::short_value(flags[digits..].strip_prefix(b" ")?)?;
    (digits > 0).then(|| (value, b"VALUE ".len() + key.len() + digits + 2 * b" ".len() + length))
}

/// Splits a frame into its line, without the line end, and the rest.
pub(super) fn split(frame: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = frame.split_at(memchr(b'\n', frame).map_or(frame.len(), |newline| newline + 1));
    (without_end(line), rest)
}

pub(super) fn without_end(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r\n").or_else(|| line.strip_suffix(b"\n")).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::{Framing, LARGE, LineFraming, Scan, short_value};

    #[test]
    fn a_frame_is_a_line_and_the_value_whose_length_it_gives() {
        let frames: [&[u8]; 6] =
            [b"HD O1\r\n", b"VA 3 O1\r\na\nb\r\n", b"VALUE k 0 0\r\n\r\n", b"END\r\n", b"key=VA exp=1\n", b"ERROR\r\n"];
        let wire = frames.concat();
        let mut framing = LineFraming::new();
        let (mut start, mut found) = (0, Vec::new());
        for end in 1..=wire.len() {
            if let Scan::Complete { length } = framing.scan(&wire[start..end]).unwrap() {
                found.push(&wire[start..start + length]);
                start += length;
            }
        }
        assert_eq!(found, frames);
    }

    #[test]
    fn a_large_value_is_not_part_of_the_frame() {
        let length = LARGE + 1;
        let line = format!("VA {length}\r\n");
        let mut framing = LineFraming::new();
        assert_eq!(framing.scan(line.as_bytes()), Ok(Scan::Large { place: line.len(), length }));
        assert_eq!(framing.scan(line.as_bytes()), Ok(Scan::Complete { length: line.len() }));
    }

    #[test]
    fn a_short_value_is_one_that_has_arrived_completely_under_its_key() {
        let wire = b"VALUE key 4294967295 4\r\n\r\nab\r\n";
        for behind in [&b""[..], b"VALUE other 0 0\r\n\r\n"] {
            assert_eq!(short_value(&[wire, behind].concat(), b"key"), Some((&b"\r\nab"[..], wire.len())));
        }
        for end in 0..wire.len() {
            assert_eq!(short_value(&wire[..end], b"key"), None, "{}", wire[..end].escape_ascii());
        }
        for other in [
            "VALUE key2 0 1\r\na\r\n",
            "VALUE key 1\r\na\r\n",
            "VALUE key  1\r\na\r\n",
            "VALUE key x 1\r\na\r\n",
            "END\r\n",
        ] {
            assert_eq!(short_value(other.as_bytes(), b"key"), None, "{other}");
        }
    }

    #[test]
    fn an_invalid_or_endless_reply_is_refused() {
        let long = "x".repeat(20_000);
        for (wire, why) in [
            ("VA x\r\n", "no reply"),
            ("VALUE k 0 x\r\n", "no reply"),
            ("VA 1\r\nabc\r\n", "does not end"),
            (&long, "too long"),
        ] {
            let error = LineFraming::new().scan(wire.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
