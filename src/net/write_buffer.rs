//! The bytes to be sent on a connection: small parts are copied into one buffer, large ones are shared.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use arrayvec::ArrayVec;
use bytes::{Buf, Bytes};

use super::LARGE;
use super::stream::ByteStream;

/// The largest number of parts in one system call.
pub(super) const PIECES: usize = 16;

/// The capacity in bytes that an empty buffer may keep.
const KEPT: usize = 64 << 10;

/// A buffer of requests.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    buffer: Vec<u8>,
    /// The number of bytes of `buffer` that were sent.
    sent: usize,
    /// Large parts, each with the index in `buffer` before which it is sent.
    large: VecDeque<(usize, Bytes)>,
}

impl WriteBuffer {
    /// The buffer, to append small parts to.
    #[inline]
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The appended bytes without the large parts.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Appends a value: copied if it is small, shared otherwise.
    pub(crate) fn push(&mut self, value: &Bytes) {
        if value.len() <= LARGE {
            self.buffer.extend_from_slice(value);
        } else {
            self.large.push_back((self.buffer.len(), value.clone()));
        }
    }

    /// Appends the contents of `other`, of which nothing was sent yet.
    pub(crate) fn append(&mut self, other: &WriteBuffer) {
        let length = self.buffer.len();
        self.large.extend(other.large.iter().map(|(index, value)| (length + index, value.clone())));
        self.buffer.extend_from_slice(&other.buffer);
    }

    /// Moves the contents to the end of `other`.
    pub(crate) fn move_to(&mut self, other: &mut WriteBuffer) {
        if other.is_empty() {
            std::mem::swap(self, other);
        } else {
            other.append(self);
        }
        self.clear();
    }

    /// The number of bytes that are not sent yet.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len() - self.sent + self.large.iter().map(|(_, value)| value.len()).sum::<usize>()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.len() == self.sent && self.large.is_empty()
    }

    pub(crate) fn has_large(&self) -> bool {
        !self.large.is_empty()
    }

    /// Sends the contents. After an error the buffer is empty.
    pub(crate) fn poll_send(&mut self, stream: &mut dyn ByteStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let sent = if self.large.is_empty() {
                stream.poll_send(cx, &[IoSlice::new(&self.buffer[self.sent..])])
            } else {
                stream.poll_send(cx, &self.pieces())
            };
            match ready!(sent) {
                Ok(sent) => self.advance(sent),
                Err(error) => {
                    self.clear();
                    return Poll::Ready(Err(error));
                }
            }
        }
        self.clear();
        Poll::Ready(Ok(()))
    }

    fn pieces(&self) -> ArrayVec<IoSlice<'_>, PIECES> {
        let mut pieces = ArrayVec::new();
        let mut start = self.sent;
        for (index, value) in self.large.iter().take(PIECES / 2 - 1) {
            if *index > start {
                pieces.push(IoSlice::new(&self.buffer[start..*index]));
            }
            pieces.push(IoSlice::new(value));
            start = *index;
        }
        let end = self.large.get(PIECES / 2 - 1).map_or(self.buffer.len(), |(index, _)| *index);
        if end > start {
            pieces.push(IoSlice::new(&self.buffer[start..end]));
        }
        pieces
    }

    fn advance(&mut self, mut sent: usize) {
        while sent > 0 {
            let end = self.large.front().map_or(self.buffer.len(), |(index, _)| *index);
            let before = sent.min(end - self.sent);
            self.sent += before;
            sent -= before;
            if let Some((index, value)) = self.large.front_mut()
                && *index == self.sent
            {
                let of_value = sent.min(value.len());
                value.advance(of_value);
                sent -= of_value;
                if value.is_empty() {
                    self.large.pop_front();
                }
            }
        }
        self.discard_sent();
    }

    /// Discards sent bytes: while there is always more to send, the buffer is never cleared.
    fn discard_sent(&mut self) {
        if self.sent > KEPT && self.sent > self.buffer.len() / 2 {
            self.buffer.drain(..self.sent);
            self.large.iter_mut().for_each(|(index, _)| *index -= self.sent);
            self.sent = 0;
        }
    }

    fn clear(&mut self) {
        self.buffer.clear();
        self.buffer.shrink_to(KEPT);
        self.sent = 0;
        self.large.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};
    use std::task::{Context, Poll, Waker};
    use std::time::{Duration, Instant};

    use bytes::Bytes;

    use super::{ByteStream, KEPT, LARGE, WriteBuffer};

    /// A stream that accepts a limited number of bytes at a time.
    #[derive(Debug)]
    struct Sink {
        at_a_time: usize,
        taken: Vec<u8>,
    }

    impl ByteStream for Sink {
        fn poll_receive(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_send(&mut self, _: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).take(self.at_a_time).collect();
            self.taken.extend_from_slice(&all);
            Poll::Ready(Ok(all.len()))
        }

        fn receive_at_once(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn set_deadline(&mut self, _: Instant, _: Duration) {}

        fn is_quiet(&mut self) -> bool {
            true
        }
    }

    #[test]
    fn parts_are_sent_in_order_however_few_bytes_the_stream_accepts() {
        let mut expected = Vec::new();
        let mut one = WriteBuffer::default();
        for number in 0..40_u8 {
            let small = [number; 3];
            one.push(&Bytes::copy_from_slice(&small));
            expected.extend_from_slice(&small);
            if number % 2 == 0 {
                let large = vec![number; LARGE + 1];
                expected.extend_from_slice(&large);
                one.push(&Bytes::from(large));
            }
        }
        for at_a_time in [1, 1_000, LARGE, usize::MAX] {
            let mut outgoing = WriteBuffer::default();
            outgoing.buffer().extend_from_slice(b"before");
            outgoing.append(&one);
            assert_eq!(outgoing.len(), b"before".len() + expected.len());
            let mut sink = Sink { at_a_time, taken: Vec::new() };
            let sent = outgoing.poll_send(&mut sink, &mut Context::from_waker(Waker::noop()));
            assert!(matches!(sent, Poll::Ready(Ok(()))));
            assert_eq!(&sink.taken[..6], b"before");
            assert!(sink.taken[6..] == expected, "{at_a_time} bytes at a time");
            assert!(outgoing.is_empty());
        }
    }

    #[test]
    fn sent_bytes_are_discarded_while_there_is_always_more_to_send() {
        let mut outgoing = WriteBuffer::default();
        outgoing.buffer().extend_from_slice(&[b'x'; 3 * LARGE]);
        for _ in 0..1_000 {
            outgoing.buffer().extend_from_slice(&[b'x'; LARGE]);
            outgoing.advance(LARGE);
        }
        assert_eq!(outgoing.len(), 3 * LARGE);
        assert!(outgoing.buffer.len() <= 2 * KEPT + 4 * LARGE, "{} bytes", outgoing.buffer.len());
    }
}
