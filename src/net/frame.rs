//! Frames: the parts of replies, cut off a stream of bytes.
//!
//! A protocol finds the end of a frame ([`Framing`]). A scan goes on where the previous one stopped, so no byte is
//! scanned twice. A protocol may take complete frames without a scan ([`FrameReader::take`]), unless the next frame is
//! scanned in part already. Frames are cut out of one read buffer. A value of more than [`LARGE`](super::LARGE) bytes
//! is taken out of its frame and received into a buffer of its own, which grows as the bytes arrive, whatever length
//! was announced. So no value that is returned keeps a read buffer alive. A value above the limit is received and
//! discarded, so that the frames behind it can still be read. During the greeting a large value is an error.

use std::fmt::Debug;
use std::mem;
use std::ops::Range;

/// The size of a read buffer in bytes: initially, while a large value arrives, and the largest that is kept when the
/// buffer is empty.
const BUFFER: usize = 16 << 10;
const BUFFER_FOR_LARGE: usize = 256 << 10;
const LONGEST_KEPT: usize = 64 << 10;

/// The length limit of a frame without its large values, in the greeting and later.
const LONGEST_IN_GREETING: usize = 64 << 10;
const LONGEST_FRAME: usize = 64 << 20;

/// The limit of the total length of the large values of one frame that are kept, unless a single one may be larger.
const LONGEST_TOGETHER: usize = 1 << 30;

const LINE_END: &[u8] = b"\r\n";

/// Finds the ends of a protocol's frames.
pub(crate) trait Framing: Debug + Send {
    /// Continues the scan of a frame. `bytes` is the part of it that has arrived.
    ///
    /// # Errors
    ///
    /// A description of the malformed frame.
    fn scan(&mut self, bytes: &[u8]) -> Result<Scan, String>;
}

/// Parses a length of at most four digits and the line end after it. Returns the length of both, and the parsed length.
#[inline]
pub(crate) fn short_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (index, byte) in bytes.iter().take(b"9999\r".len()).enumerate() {
        match byte {
            b'0'..=b'9' if index < b"9999".len() => length = 10 * length + usize::from(byte - b'0'),
            b'\r' if index > 0 && bytes.get(index + 1) == Some(&b'\n') => {
                return Some((index + LINE_END.len(), length));
            }
            _ => break,
        }
    }
    None
}

/// Returns a value after its length, each with a line end, and the length of all that, if `bytes` begins with it and
/// the length has at most four digits.
#[inline]
pub(crate) fn short_value(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (start, length) = short_length(bytes)?;
    let end = start + length;
    bytes.get(end..)?.starts_with(LINE_END).then(|| (&bytes[start..end], end + LINE_END.len()))
}

/// The result of a scan.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// The end of the frame has not arrived.
    Partial,
    /// At the index `place`, a value of more than [`LARGE`](super::LARGE) bytes begins. It is taken out of the frame,
    /// with the line end after it, and the scan goes on without it.
    Large {
        place: usize,
        length: usize,
    },
    Complete {
        length: usize,
    },
    /// Complete, but no part of any reply: the server sent it unsolicited.
    Push {
        length: usize,
    },
}

/// A complete frame.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) large: LargeValues,
}

/// The large values of a frame, each with its index in the frame; `None` for a value that was discarded.
type LargeValues = Vec<(usize, Option<Vec<u8>>)>;

/// The position of a frame in the read buffer, and its large values.
#[derive(Debug)]
pub(super) struct Cut {
    range: Range<usize>,
    large: LargeValues,
}

/// Cuts frames off the received bytes.
#[derive(Debug)]
pub(super) struct FrameReader<F> {
    framing: F,
    buffer: Vec<u8>,
    /// `buffer[start..end]` has been received and not yet cut.
    start: usize,
    end: usize,
    /// The large value that is being received, and those before it in its frame.
    value: Option<LargeValue>,
    large: LargeValues,
    /// Whether the framing has scanned a part of the frame at `start`.
    is_scanned: bool,
    /// The length of the longest value that is kept. `None` during the greeting.
    longest_value: Option<usize>,
}

/// A large value that is being received.
#[derive(Debug)]
struct LargeValue {
    place: usize,
    /// Its length, with the line end after it.
    whole: usize,
    received: usize,
    /// `None` if it is discarded.
    data: Option<Vec<u8>>,
}

impl<F: Framing> FrameReader<F> {
    pub(super) fn new(framing: F) -> FrameReader<F> {
        let buffer = vec![0; BUFFER];
        FrameReader {
            framing,
            buffer,
            start: 0,
            end: 0,
            value: None,
            large: Vec::new(),
            is_scanned: false,
            longest_value: None,
        }
    }

    /// Ends the greeting: from now on, values of up to this length are kept.
    pub(super) fn allow(&mut self, longest_value: usize) {
        self.longest_value = Some(longest_value);
    }

    /// Returns whether all received bytes have been cut into frames.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end && self.value.is_none() && self.large.is_empty()
    }

    /// The announced length of the large value that is being received.
    pub(super) fn announced(&self) -> Option<usize> {
        self.value.as_ref().map(|value| value.whole)
    }

    /// The free part of the read buffer, to receive into.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.value.is_some() && self.buffer.len() < BUFFER_FOR_LARGE {
            self.buffer.resize(BUFFER_FOR_LARGE, 0);
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > LONGEST_KEPT {
                self.buffer = vec![0; BUFFER];
            }
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end == self.buffer.len() {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
        }
        &mut self.buffer[self.end..]
    }

    /// Records that `count` bytes were received into [`space`](FrameReader::space).
    pub(super) fn received(&mut self, count: usize) {
        self.end += count;
        if self.end == self.buffer.len() && self.start == 0 && self.buffer.len() < LONGEST_KEPT {
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
    }

    /// Lets `accept` take complete frames from the beginning of the received bytes, if none of these bytes is scanned
    /// yet. `accept` returns the length of the frames, or 0, and the result of this call, which is otherwise `false`.
    #[inline]
    pub(super) fn take(&mut self, accept: impl FnOnce(&[u8]) -> (usize, bool)) -> bool {
        if self.is_scanned || self.start == self.end {
            return false;
        }
        let (length, result) = accept(&self.buffer[self.start..self.end]);
        self.start += length;
        result
    }

    /// Cuts the next frame off, if all of it has arrived.
    ///
    /// # Errors
    ///
    /// A description of the malformed or oversized frame.
    pub(super) fn next(&mut self) -> Result<Option<Cut>, String> {
        self.next_if(true)
    }

    /// As [`next`](FrameReader::next). Without `is_wanted`, large values of the frame are discarded.
    pub(super) fn next_if(&mut self, is_wanted: bool) -> Result<Option<Cut>, String> {
        loop {
            if self.start == self.end {
                return Ok(None);
            }
            if let Some(mut value) = self.value.take() {
                let from = self.start + value.place;
                let taken = value.take(&self.buffer[from..self.end]);
                self.buffer.copy_within(from + taken..self.end, from);
                self.end -= taken;
                if value.received < value.whole {
                    self.value = Some(value);
                    return Ok(None);
                }
                self.large.push(value.finish()?);
            }
            let scan = self.framing.scan(&self.buffer[self.start..self.end])?;
            self.is_scanned = matches!(scan, Scan::Partial | Scan::Large { .. });
            match scan {
                Scan::Partial if self.end - self.start > self.longest_frame() => {
                    return Err(format!("a reply of more than {} bytes", self.longest_frame()));
                }
                Scan::Partial => return Ok(None),
                Scan::Large { place, length } => {
                    let longest = self.longest_value.ok_or("a large value before the login")?;
                    let before: usize = self.large.iter().filter_map(|(_, value)| Some(value.as_ref()?.len())).sum();
                    let fits = length <= longest && length <= LONGEST_TOGETHER.max(longest).saturating_sub(before);
                    let whole = length.saturating_add(LINE_END.len());
                    let data = (is_wanted && fits).then(Vec::new);
                    self.value = Some(LargeValue { place, whole, received: 0, data });
                }
                Scan::Push { length } => {
                    self.start += length;
                    self.large.clear();
                }
                Scan::Complete { length } => {
                    let start = self.start;
                    self.start += length;
                    return Ok(Some(Cut { range: start..self.start, large: mem::take(&mut self.large) }));
                }
            }
        }
    }

    fn longest_frame(&self) -> usize {
        if self.longest_value.is_some() { LONGEST_FRAME } else { LONGEST_IN_GREETING }
    }

    /// The frame that was cut off last, before anything else is received.
    pub(super) fn frame(&self, cut: Cut) -> Frame<'_> {
        Frame { bytes: &self.buffer[cut.range], large: cut.large }
    }
}

impl LargeValue {
    /// Takes the next part of the value from the beginning of `bytes`. Returns its length.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let left = self.whole - self.received;
        let count = left.min(bytes.len());
        if let Some(data) = &mut self.data {
            if data.capacity() - data.len() < count {
                data.reserve_exact(left.min(count.max(data.len())));
            }
            data.extend_from_slice(&bytes[..count]);
        }
        self.received += count;
        count
    }

    fn finish(self) -> Result<(usize, Option<Vec<u8>>), String> {
        let Some(mut data) = self.data else { return Ok((self.place, None)) };
        if !data.ends_with(LINE_END) {
            return Err("a value that does not end where it should".to_owned());
        }
        data.truncate(self.whole - LINE_END.len());
        Ok((self.place, Some(data)))
    }
}

#[cfg(test)]
mod tests {
    use super::{FrameReader, Framing, Scan};
    use crate::net::LARGE;

    /// A protocol whose frames are a length, a line feed, the value and a line end.
    #[derive(Debug, Default)]
    struct Sized {
        /// The index at which a large value was announced.
        announced: Option<usize>,
    }

    impl Framing for Sized {
        fn scan(&mut self, bytes: &[u8]) -> Result<Scan, String> {
            if let Some(place) = self.announced.take() {
                return Ok(Scan::Complete { length: place });
            }
            let Some(line) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(Scan::Partial) };
            let length: usize = std::str::from_utf8(&bytes[..line]).unwrap().parse().map_err(|_| "no number")?;
            let place = line + 1;
            if length > LARGE {
                self.announced = Some(place);
                return Ok(Scan::Large { place, length });
            }
            let whole = place + length + 2;
            Ok(if bytes.len() < whole { Scan::Partial } else { Scan::Complete { length: whole } })
        }
    }

    fn reader(longest_value: usize) -> FrameReader<Sized> {
        let mut reader = FrameReader::new(Sized::default());
        reader.allow(longest_value);
        reader
    }

    fn values(wire: &[u8], at_a_time: usize, longest_value: usize) -> Vec<Option<Vec<u8>>> {
        let mut reader = reader(longest_value);
        let mut values = Vec::new();
        let mut rest = wire;
        while !rest.is_empty() {
            let space = reader.space();
            let count = space.len().min(rest.len()).min(at_a_time);
            space[..count].copy_from_slice(&rest[..count]);
            reader.received(count);
            rest = &rest[count..];
            while let Some(cut) = reader.next().unwrap() {
                let mut frame = reader.frame(cut);
                let line = frame.bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
                values.push(match frame.large.pop() {
                    Some((place, value)) => {
                        assert_eq!((place, frame.bytes.len()), (line, line));
                        value
                    }
                    None => Some(frame.bytes[line..frame.bytes.len() - 2].to_vec()),
                });
            }
        }
        assert!(reader.is_empty());
        values
    }

    #[test]
    fn frames_do_not_depend_on_how_their_bytes_arrive() {
        let sizes = [0, 1, LARGE, LARGE + 1, 5, 10 * LARGE, 2 << 20, 3];
        let sent: Vec<Vec<u8>> = (0_u8..).zip(sizes).map(|(number, size)| vec![number; size]).collect();
        let mut wire = Vec::new();
        for value in &sent {
            wire.extend_from_slice(format!("{}\n", value.len()).as_bytes());
            wire.extend_from_slice(value);
            wire.extend_from_slice(b"\r\n");
        }
        for at_a_time in [1, 7, 1_000, LARGE, usize::MAX] {
            for longest in [LARGE, 10 * LARGE, 2 << 20] {
                let kept: Vec<_> =
                    sent.iter().map(|value| Some(value).filter(|v| v.len() <= longest).cloned()).collect();
                assert!(values(&wire, at_a_time, longest) == kept, "{at_a_time} bytes at a time, up to {longest}");
            }
        }
    }

    #[test]
    fn a_large_value_during_the_greeting_is_an_error() {
        let mut reader = FrameReader::new(Sized::default());
        let announced = b"1000000000\n";
        reader.space()[..announced.len()].copy_from_slice(announced);
        reader.received(announced.len());
        assert!(reader.next().unwrap_err().contains("before the login"));
    }

    #[test]
    fn the_buffer_of_a_large_value_grows_as_it_arrives() {
        let mut reader = reader(usize::MAX);
        let announced = b"1000000000\n";
        reader.space()[..announced.len()].copy_from_slice(announced);
        reader.received(announced.len());
        assert!(reader.next().unwrap().is_none());
        assert_eq!(reader.announced(), Some(1_000_000_002));
        assert!(reader.value.unwrap().data.unwrap().capacity() <= 256 << 10);
    }

    #[test]
    fn a_value_without_a_line_end_is_an_error() {
        let mut reader = reader(usize::MAX);
        let mut wire = format!("{}\n", LARGE + 1).into_bytes();
        wire.resize(wire.len() + LARGE + 3, b'x');
        for byte in wire {
            reader.space()[0] = byte;
            reader.received(1);
            if let Err(error) = reader.next() {
                assert!(error.contains("does not end"), "{error}");
                return;
            }
        }
        panic!("the value was accepted");
    }
}
