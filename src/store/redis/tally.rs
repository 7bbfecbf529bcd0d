//! How many replies have arrived.
//!
//! The crate's parser reads ahead and does not say how much it has kept. A reply more than was asked for (a server gone wrong,
//! an array whose count was damaged) would stay in its buffer and answer the next request. So whatever the parser reads
//! passes by here, where only the frames of RESP are followed: once an exchange is done, both counts must agree. Requests
//! have the same frames, and are counted alike where many share a connection.

use arrayvec::ArrayVec;

/// A header's type and number; what else is on a line is text.
const HEADER: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Complete ones. What the server says unasked is not counted.
    replies: u64,
    /// How many values the current frame still lacks, with those inside of it; 0 between two frames.
    lacking: u64,
    is_push: bool,
    /// How much of a value's body is still to come, with its line end.
    body: u64,
    /// A header whose line end has not come yet.
    header: ArrayVec<u8, HEADER>,
}

impl Tally {
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.body > 0 {
                let passed = self.body.min(bytes.len() as u64);
                bytes = &bytes[passed as usize..];
                self.body -= passed;
                if self.body == 0 {
                    self.end_value();
                }
                continue;
            }
            let line_end = bytes.iter().position(|byte| *byte == b'\n');
            let line = &bytes[..line_end.unwrap_or(bytes.len())];
            self.header.extend(line.iter().copied().take(self.header.remaining_capacity()));
            let Some(line_end) = line_end else { return };
            bytes = &bytes[line_end + 1..];
            self.begin_value();
        }
    }

    /// Whether just so many replies have arrived, and nothing of another.
    pub(super) fn is_even(&self, replies: u64) -> bool {
        let between = self.lacking == 0 && self.header.is_empty();
        let begins_push = self.lacking == 0 && self.header.first() == Some(&b'>');
        self.replies == replies && (between || begins_push || (self.lacking > 0 && self.is_push))
    }

    /// How many have arrived, with the one of which only a part has.
    #[cfg(feature = "tokio")]
    pub(super) fn begun(&self) -> u64 {
        let is_begun = match self.lacking {
            0 => self.header.first().is_some_and(|kind| *kind != b'>'),
            _ => !self.is_push,
        };
        self.replies + u64::from(is_begun)
    }

    fn begin_value(&mut self) {
        let kind = self.header.first().copied().unwrap_or_default();
        let number = std::str::from_utf8(&self.header[1.min(self.header.len())..]).ok();
        let number: u64 = number.and_then(|number| number.trim_end().parse().ok()).unwrap_or(0);
        let is_null = self.header.get(1) == Some(&b'-');
        self.header.clear();
        if self.lacking == 0 {
            self.lacking = 1;
            self.is_push = kind == b'>';
        }
        match kind {
            b'$' | b'!' | b'=' if !is_null => {
                self.body = number.saturating_add(2);
                return;
            }
            b'*' | b'~' | b'>' => self.lacking = self.lacking.saturating_add(number),
            b'%' => self.lacking = self.lacking.saturating_add(number.saturating_mul(2)),
            b'|' => self.lacking = self.lacking.saturating_add(number.saturating_mul(2)).saturating_add(1),
            _ => {}
        }
        self.end_value();
    }

    fn end_value(&mut self) {
        self.lacking -= 1;
        if self.lacking == 0 && !self.is_push {
            self.replies += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    /// However the bytes are cut.
    fn even_after(bytes: &[u8]) -> Option<u64> {
        let outcomes: Vec<Option<u64>> = [1, 2, 3, 7, bytes.len()]
            .into_iter()
            .map(|size| {
                let mut tally = Tally::default();
                bytes.chunks(size).for_each(|piece| tally.pass(piece));
                (0..10).find(|replies| tally.is_even(*replies))
            })
            .collect();
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
        outcomes[0]
    }

    #[test]
    fn every_kind_of_reply_is_one() {
        let replies: [&[u8]; 14] = [
            b"+OK\r\n",
            b"-ERR no\r\n",
            b":-12\r\n",
            b"$5\r\n1\r\n23\r\n",
            b"$0\r\n\r\n",
            b"$-1\r\n",
            b"_\r\n",
            b"#t\r\n",
            b",1.5\r\n",
            b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
            b"*-1\r\n",
            b"%1\r\n+a\r\n*0\r\n",
            b"|1\r\n+a\r\n:1\r\n$1\r\nb\r\n",
            b"=7\r\ntxt:abc\r\n",
        ];
        for reply in replies {
            assert_eq!(even_after(reply), Some(1), "{}", reply.escape_ascii());
            assert_eq!(even_after(&reply.repeat(3)), Some(3), "{}", reply.escape_ascii());
        }
    }

    #[test]
    fn a_piece_of_another_reply_is_noticed() {
        for piece in ["$", "$1\r\n", "$1\r\na", "*2\r\n:1\r\n", "+O"] {
            assert_eq!(even_after(format!("+OK\r\n{piece}").as_bytes()), None, "{piece:?}");
        }
    }

    #[cfg(feature = "tokio")]
    #[test]
    fn a_piece_of_a_reply_has_begun() {
        let begun = |bytes: &[u8]| {
            let mut tally = Tally::default();
            tally.pass(bytes);
            tally.begun()
        };
        assert_eq!(
            [&b""[..], b"$", b"$1\r\na", b"$1\r\na\r\n", b"*2\r\n:1\r\n", b"+\r\n:"].map(begun),
            [0, 1, 1, 1, 1, 2]
        );
        assert_eq!([&b">"[..], b">1\r\n$", b">1\r\n+a\r\n", b":1\r\n>"].map(begun), [0, 0, 0, 1]);
    }

    #[test]
    fn what_the_server_says_unasked_is_not_counted() {
        let push = ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n";
        for length in 0..=push.len() {
            let bytes = format!("+OK\r\n{push}:1\r\n{}", &push[..length]);
            assert_eq!(even_after(bytes.as_bytes()), Some(2), "{length} bytes of a push");
        }
    }
}
