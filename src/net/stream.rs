//! A connected byte stream: one trait for blocking streams and tokio's.
//!
//! The methods of the trait poll. A blocking stream waits instead of returning pending, so asynchronous code on top of
//! the trait is ready at its first poll. In [slices](crate::execution::in_slice) it returns pending when a slice ends
//! during a wait.
//!
//! # Deadlines
//!
//! A blocking exchange has one deadline. The kernel's receive timeout is set when the stream is created. Before each
//! wait, the remaining time is compared with it. It is set again only if they differ by more than a fiftieth: after a
//! slow write, a reply in pieces, or a signal. Sending waits only while the socket's buffer is full. So a typical
//! exchange takes two system calls and reads the clock once, when it begins. Over tokio, a timer limits an exchange.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::socket::Socket;
use crate::execution::{slice_end, wait_end};

/// A wait may be too long by its timeout divided by this.
const SLACK: u32 = 50;

/// A stream of bytes to and from a server: a socket, or TLS over one.
pub(crate) trait ByteStream: Debug + Send {
    /// Receives at least one byte; 0 means that the server has closed the connection.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Sends at least one byte of these pieces. Returns how many.
    fn poll_send(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Receives the bytes that have arrived, without waiting. Fails with [`WouldBlock`](io::ErrorKind::WouldBlock) if
    /// there are none.
    fn receive_at_once(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Limits the waits of a blocking stream to `timeout` in total, from `now` on.
    fn set_deadline(&mut self, now: Instant, timeout: Duration);

    /// Returns whether nothing has arrived, not even the end of the stream, as expected between exchanges. On an
    /// encrypted stream, only decrypted bytes and the end count.
    fn is_quiet(&mut self) -> bool;
}

/// A stream over a socket that blocks the calling thread.
#[derive(Debug)]
pub(super) struct BlockingStream {
    socket: Socket,
    deadline: Instant,
    /// The time until the deadline, until the first wait after the deadline was set.
    whole: Option<Duration>,
    /// The value of the kernel's receive timeout.
    receive_timeout: Duration,
}

impl BlockingStream {
    /// Takes a connected socket, and makes it blocking.
    pub(super) fn new(socket: Socket, timeout: Duration) -> io::Result<BlockingStream> {
        socket.set_blocking()?;
        socket.set_receive_timeout(timeout)?;
        Ok(BlockingStream { socket, deadline: Instant::now() + timeout, whole: None, receive_timeout: timeout })
    }

    fn send(&mut self, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.send(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.whole = None;
                    let until = wait_end(self.deadline);
                    match self.socket.wait_writable(until) {
                        Some(writable) => writable?,
                        None => return timed_out(until, self.deadline),
                    }
                }
                // A signal is not a failure.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let until = wait_end(self.deadline);
            let whole = self.whole.take().filter(|_| until == self.deadline);
            let left = whole.unwrap_or_else(|| until.saturating_duration_since(Instant::now()));
            let received = if !left.is_zero() {
                self.wait_for(left)?;
                self.socket.receive(buffer)
            } else if slice_end().is_some() {
                // The deadline has passed between two slices: bytes that have arrived meanwhile are still received.
                self.socket.receive_at_once(buffer)
            } else {
                return timed_out(until, self.deadline);
            };
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return timed_out(until, self.deadline),
                // The loop continues with the remaining time.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => return Poll::Ready(received),
            }
        }
    }

    /// Sets the timeout of the next receive, unless it is about `left` already.
    fn wait_for(&mut self, left: Duration) -> io::Result<()> {
        if differ(self.receive_timeout, left) {
            self.socket.set_receive_timeout(left)?;
            self.receive_timeout = left;
        }
        Ok(())
    }
}

impl ByteStream for BlockingStream {
    fn poll_receive(&mut self, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.receive(buffer)
    }

    fn poll_send(&mut self, _: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.send(pieces)
    }

    fn receive_at_once(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.receive_at_once(buffer)
    }

    fn set_deadline(&mut self, now: Instant, timeout: Duration) {
        (self.deadline, self.whole) = (now + timeout, Some(timeout));
    }

    fn is_quiet(&mut self) -> bool {
        self.socket.is_quiet()
    }
}

fn differ(set: Duration, left: Duration) -> bool {
    set.abs_diff(left) > set / SLACK
}

/// The result of a wait that has ended without an event: pending at the end of a slice, otherwise a timeout.
fn timed_out<T>(until: Instant, deadline: Instant) -> Poll<io::Result<T>> {
    if until < deadline { Poll::Pending } else { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) }
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::{BlockingStream, Poll, Socket};
    use crate::execution::in_slice;

    const TIMEOUT: Duration = Duration::from_millis(200);
    /// Longer than a timeout takes on a slow machine, and shorter than a wait that is prolonged by these peers, which
    /// would take tens of seconds.
    const MUCH_TOO_LONG: Duration = Duration::from_secs(5);

    /// Returns a stream whose peer runs in a thread of its own.
    fn stream(peer: impl FnOnce(UnixStream) + Send + 'static) -> BlockingStream {
        let path =
            std::env::temp_dir().join(format!("prefork-cache-stream-{}-{:p}", std::process::id(), &raw const peer));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let socket = Socket::unix().unwrap();
        let _ = socket.start_connecting_unix(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        thread::spawn(move || peer(listener.accept().unwrap().0));
        BlockingStream::new(socket, TIMEOUT).unwrap()
    }

    fn send_all(stream: &mut BlockingStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            bytes = &bytes[now(stream.send(&[IoSlice::new(bytes)]))?..];
        }
        Ok(())
    }

    #[test]
    fn a_peer_that_reads_slowly_does_not_prolong_a_write() {
        let mut stream = stream(|mut peer| {
            let mut some = vec![0; 64 * 1024];
            while peer.read(&mut some).is_ok_and(|received| received > 0) {
                thread::sleep(TIMEOUT / 2);
            }
        });
        let started = Instant::now();
        stream.deadline = started + TIMEOUT;
        let written = send_all(&mut stream, &vec![0; 32 << 20]);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() < MUCH_TOO_LONG, "{:?}", started.elapsed());
    }

    #[test]
    fn a_peer_that_sends_byte_by_byte_does_not_prolong_a_read() {
        let mut stream = stream(|mut peer| {
            while peer.write_all(b"x").is_ok() {
                thread::sleep(TIMEOUT / 20);
            }
        });
        let started = Instant::now();
        stream.deadline = started + TIMEOUT;
        let failed = loop {
            if let Err(error) = now(stream.receive(&mut [0; 16])) {
                break error;
            }
        };
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() < MUCH_TOO_LONG, "{:?}", started.elapsed());
    }

    #[test]
    fn a_shortened_timeout_is_set_again() {
        let mut stream = stream(|mut peer| {
            thread::sleep(TIMEOUT / 2);
            peer.write_all(b"late").unwrap();
            let _ = peer.read(&mut [0]);
        });
        stream.deadline = Instant::now() + TIMEOUT / 4;
        assert!(now(stream.receive(&mut [0; 16])).is_err());
        stream.deadline = Instant::now() + 60 * TIMEOUT;
        assert_eq!(now(stream.receive(&mut [0; 16])).unwrap(), 4);
    }

    #[test]
    fn a_wait_is_suspended_at_the_end_of_a_slice_and_continued_in_the_next() {
        let (start, started) = channel();
        let mut stream = stream(move |mut peer| {
            started.recv().unwrap();
            peer.write_all(b"late").unwrap();
            let _ = peer.read(&mut [0]);
        });
        stream.deadline = Instant::now() + 60 * TIMEOUT;
        let mut buffer = [0; 16];
        assert!(in_slice(Instant::now() + TIMEOUT / 20, || stream.receive(&mut buffer)).is_pending());
        start.send(()).unwrap();
        let received = in_slice(Instant::now() + MUCH_TOO_LONG, || stream.receive(&mut buffer));
        assert_eq!(now(received).unwrap(), 4);
    }

    #[test]
    fn bytes_that_arrived_between_two_slices_are_received_after_the_deadline() {
        let (report, written) = channel();
        let mut stream = stream(move |mut peer| {
            peer.write_all(b"late").unwrap();
            report.send(()).unwrap();
            let _ = peer.read(&mut [0]);
        });
        written.recv().unwrap();
        stream.deadline = Instant::now();
        let mut buffer = [0; 16];
        let mut receive = || now(in_slice(Instant::now() + MUCH_TOO_LONG, || stream.receive(&mut buffer)));
        assert_eq!(receive().unwrap(), 4);
        assert_eq!(receive().unwrap_err().kind(), io::ErrorKind::TimedOut, "nothing more arrives");
    }

    /// The output of a poll of a blocking stream outside of slices.
    fn now<T>(polled: Poll<T>) -> T {
        match polled {
            Poll::Ready(ready) => ready,
            Poll::Pending => panic!("a blocking stream suspended"),
        }
    }
}
