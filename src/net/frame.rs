//! Replies cut out of a stream of bytes.
//!
//! A protocol says where a frame ends ([`Framing`]). It goes on where it stopped and never looks at a byte twice.
//! Frames are cut out of one read buffer; a value of more than [`LARGE`](super::LARGE) bytes is left out of its frame
//! and read into a buffer of its own, which grows as the bytes arrive, whatever length was announced. So nothing that
//! is handed out keeps a read buffer alive. A value that is larger than it may be is received and not kept: what comes
//! behind it can still be told. Before the greeting is over no large value may come at all.

use std::fmt::Debug;
use std::mem;
use std::ops::Range;

/// The size of a read buffer: at first, while a large value arrives, and the most that is kept of it.
const BUFFER: usize = 16 << 10;
const BUFFER_FOR_LARGE: usize = 256 << 10;
const LONGEST_KEPT: usize = 64 << 10;

/// The most that a frame may have besides its large values, in the greeting and later.
const LONGEST_IN_GREETING: usize = 64 << 10;
const LONGEST_FRAME: usize = 64 << 20;

/// The most that is kept of the large values of one frame, unless a single one may be larger.
const LONGEST_TOGETHER: usize = 1 << 30;

const LINE_END: &[u8] = b"\r\n";

/// Where the frames of a protocol end.
pub(crate) trait Framing: Debug + Send {
    /// Looks on in a frame, of which `bytes` has arrived.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    fn scan(&mut self, bytes: &[u8]) -> Result<Scan, String>;
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    Partial,
    /// A value of more than [`LARGE`](super::LARGE) bytes begins here. It is taken out, with the line end behind it,
    /// and the scan goes on as if it had none.
    Large {
        place: usize,
        length: usize,
    },
    Complete {
        length: usize,
    },
    /// Complete, and no part of any reply: the server says it unasked.
    Unasked {
        length: usize,
    },
}

/// A whole frame.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) large: LargeValues,
}

/// The large values of a frame, each with its place in it; none in the place of one that was not kept.
type LargeValues = Vec<(usize, Option<Vec<u8>>)>;

/// Where in the read buffer a frame is.
#[derive(Debug)]
pub(super) struct Cut {
    range: Range<usize>,
    large: LargeValues,
}

#[derive(Debug)]
pub(super) struct FrameReader<F> {
    framing: F,
    buffer: Vec<u8>,
    /// What was received and not yet cut is `buffer[start..end]`.
    start: usize,
    end: usize,
    /// The large value that is being received, and those before it in its frame.
    value: Option<LargeValue>,
    large: LargeValues,
    /// The longest value that is kept, once the greeting is over.
    longest_value: Option<usize>,
}

#[derive(Debug)]
struct LargeValue {
    place: usize,
    /// With the line end behind it.
    whole: usize,
    received: usize,
    /// Unless it is not kept.
    data: Option<Vec<u8>>,
}

impl<F: Framing> FrameReader<F> {
    pub(super) fn new(framing: F) -> FrameReader<F> {
        let buffer = vec![0; BUFFER];
        FrameReader { framing, buffer, start: 0, end: 0, value: None, large: Vec::new(), longest_value: None }
    }

    /// The greeting is over: values may be as long as this.
    pub(super) fn allow(&mut self, longest_value: usize) {
        self.longest_value = Some(longest_value);
    }

    /// Whether everything that has arrived was cut.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end && self.value.is_none() && self.large.is_empty()
    }

    /// The length of the large value that is being received.
    pub(super) fn announced(&self) -> Option<usize> {
        self.value.as_ref().map(|value| value.whole)
    }

    /// Where to receive to.
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

    /// So many bytes were received into [`space`](FrameReader::space).
    pub(super) fn received(&mut self, count: usize) {
        self.end += count;
        if self.end == self.buffer.len() && self.start == 0 && self.buffer.len() < LONGEST_KEPT {
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
    }

    /// Cuts the next frame off, if the whole of it has arrived.
    ///
    /// # Errors
    ///
    /// Why what has arrived is no frame.
    pub(super) fn next(&mut self) -> Result<Option<Cut>, String> {
        self.next_if(true)
    }

    /// As [`next`](FrameReader::next). Of a frame that is not wanted, a large value is not kept.
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
            match self.framing.scan(&self.buffer[self.start..self.end])? {
                Scan::Partial if self.end - self.start > self.longest_frame() => {
                    return Err(format!("a reply of more than {} bytes", self.longest_frame()));
                }
                Scan::Partial => return Ok(None),
                Scan::Large { place, length } => {
                    let longest = self.longest_value.ok_or("a large value before it was logged in to")?;
                    let before: usize = self.large.iter().filter_map(|(_, value)| Some(value.as_ref()?.len())).sum();
                    let fits = length <= longest && length <= LONGEST_TOGETHER.max(longest).saturating_sub(before);
                    let whole = length.saturating_add(LINE_END.len());
                    let data = (is_wanted && fits).then(Vec::new);
                    self.value = Some(LargeValue { place, whole, received: 0, data });
                }
                Scan::Unasked { length } => {
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

    /// The frame that was cut off last.
    pub(super) fn frame(&self, cut: Cut) -> Frame<'_> {
        Frame { bytes: &self.buffer[cut.range], large: cut.large }
    }
}

impl LargeValue {
    /// Takes what is its own of these bytes. Returns how many.
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

    /// A length, a line feed, the value and a line end.
    #[derive(Debug, Default)]
    struct Sized {
        /// Where a large value was announced.
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
    fn frames_are_the_same_however_their_bytes_arrive() {
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
    fn no_large_value_comes_before_the_greeting_is_over() {
        let mut reader = FrameReader::new(Sized::default());
        let announced = b"1000000000\n";
        reader.space()[..announced.len()].copy_from_slice(announced);
        reader.received(announced.len());
        assert!(reader.next().unwrap_err().contains("before it was logged in to"));
    }

    #[test]
    fn a_large_value_grows_as_it_arrives() {
        let mut reader = reader(usize::MAX);
        let announced = b"1000000000\n";
        reader.space()[..announced.len()].copy_from_slice(announced);
        reader.received(announced.len());
        assert!(reader.next().unwrap().is_none());
        assert_eq!(reader.announced(), Some(1_000_000_002));
        assert!(reader.value.unwrap().data.unwrap().capacity() <= 256 << 10);
    }

    #[test]
    fn a_value_that_does_not_end_where_it_should_is_refused() {
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
        panic!("it was taken for a value");
    }
}
