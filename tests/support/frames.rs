//! Splits a server's replies into frames: RESP2 and RESP3, and Memcached's meta and text protocols.

use super::servers::Kind;

/// Follows the replies of one connection, and keeps the unfinished one.
#[derive(Debug)]
pub struct Frames {
    kind: Kind,
    unfinished: Vec<u8>,
}

impl Frames {
    pub fn of(kind: Kind) -> Frames {
        Frames { kind, unfinished: Vec::new() }
    }

    /// Returns where frames end in the next piece of the stream, in ascending order. The first element is 0 if a frame
    /// starts at the beginning of the piece.
    pub fn boundaries(&mut self, piece: &[u8]) -> Vec<usize> {
        let before = self.unfinished.len();
        let mut boundaries = if before == 0 { vec![0] } else { Vec::new() };
        self.unfinished.extend_from_slice(piece);
        let mut whole = 0;
        while let Some(length) = frame(self.kind, &self.unfinished[whole..]) {
            whole += length;
            boundaries.push(whole - before);
        }
        self.unfinished.drain(..whole);
        boundaries
    }
}

/// The length of the frame at the start of `bytes`, if it is complete.
fn frame(kind: Kind, bytes: &[u8]) -> Option<usize> {
    match kind {
        Kind::Redis => resp(bytes),
        Kind::Memcached => memcached(bytes),
    }
}

fn resp(bytes: &[u8]) -> Option<usize> {
    let end = line(bytes)?;
    let count: Option<usize> = text(&bytes[1..end - 2]).parse().ok();
    let children = match bytes[0] {
        b'$' | b'!' | b'=' => return if_complete(bytes, count.map_or(end, |length| end + length + 2)),
        b'*' | b'~' | b'>' => count.unwrap_or(0),
        b'%' => 2 * count?,
        // An attribute belongs to the frame after it.
        b'|' => 2 * count? + 1,
        _ => 0,
    };
    (0..children).try_fold(end, |at, _| Some(at + resp(&bytes[at..])?))
}

/// The values of a text `get` and its `END` are one frame, as are statistics.
fn memcached(bytes: &[u8]) -> Option<usize> {
    let end = line(bytes)?;
    let mut words = text(&bytes[..end - 2]).split(' ');
    match words.next() {
        Some("VA") => if_complete(bytes, end + words.next()?.parse::<usize>().ok()? + 2),
        Some("VALUE") => {
            let value = if_complete(bytes, end + words.nth(2)?.parse::<usize>().ok()? + 2)?;
            Some(value + memcached(&bytes[value..])?)
        }
        Some("STAT") => Some(end + memcached(&bytes[end..])?),
        _ => Some(end),
    }
}

/// The length of the first line, including its line end.
fn line(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|two| two == b"\r\n").map(|length| length + 2).filter(|length| *length > 2)
}

fn if_complete(bytes: &[u8], length: usize) -> Option<usize> {
    (length <= bytes.len()).then_some(length)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::{Frames, Kind};

    /// However the stream is split into pieces, frames end at the same positions.
    fn assert_frames(kind: Kind, frames: &[&str]) {
        let stream = frames.concat();
        let ends: Vec<usize> =
            frames.iter().scan(0, |end, frame| Some(*end + frame.len()).inspect(|e| *end = *e)).collect();
        for length in 1..=stream.len() {
            let mut followed = Frames::of(kind);
            let found: Vec<usize> = stream
                .as_bytes()
                .chunks(length)
                .enumerate()
                .flat_map(|(number, piece)| {
                    let boundaries = followed.boundaries(piece).into_iter();
                    boundaries.filter(|end| *end > 0).map(move |end| number * length + end)
                })
                .collect();
            assert_eq!(found, ends, "{kind:?} in pieces of {length}");
        }
    }

    #[test]
    fn resp() {
        let attributed = "|1\r\n+ttl\r\n:3\r\n$2\r\nok\r\n";
        let nested = "*2\r\n$3\r\na\r\n\r\n%1\r\n+k\r\n*-1\r\n";
        assert_frames(
            Kind::Redis,
            &["+OK\r\n", "$3\r\nbad\r\n", "$-1\r\n", "_\r\n", nested, attributed, ":1\r\n", "*0\r\n"],
        );
    }

    #[test]
    fn memcached() {
        let values = "VALUE a 0 5\r\nEND\r\n\r\nVALUE b 0 0\r\n\r\nEND\r\n";
        assert_frames(Kind::Memcached, &["HD\r\n", "VA 4 O1\r\n\r\n\r\n\r\n", values, "END\r\n", "EN\r\n", "MN\r\n"]);
    }
}
