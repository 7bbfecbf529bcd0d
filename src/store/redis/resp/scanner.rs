//! The scan for the ends of frames.
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

use arrayvec::ArrayVec;

use super::{integer, short_string};
use crate::net::{Framing, LARGE, Scan};

/// The maximum depth of nested values in a frame, and the maximum number of its values.
const MAX_DEPTH: usize = 32;
pub(super) const MAX_VALUES: u64 = 1 << 20;

/// The maximum lengths of a header line and of a push, in bytes.
const MAX_LINE: usize = 64 << 10;
pub(super) const MAX_PUSH: usize = 1 << 20;

/// Finds the ends of frames.
#[derive(Debug, Default)]
pub(in crate::store::redis) struct RespFraming(Scanner);

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
