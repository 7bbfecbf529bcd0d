//! A connected byte stream, blocking or tokio's, behind one trait.
//!
//! To receive or to send is to poll. A blocking stream waits instead of being pending, so whatever is written
//! on top of the trait as asynchronous code is ready at its first poll there. In [slices](super::execution::in_slice) it is
//! pending where it has waited until the end of one.
//!
//! # Deadlines
//!
//! A blocking exchange has one deadline. The kernel's timeout for receiving is set when the stream is made; before each
//! wait the time that is left is compared with what is set, and set again only where they differ by more than a
//! fiftieth: after a slow write, a reply in pieces, or a signal. Sending waits only where the socket has no room. So a
//! normal exchange is two system calls and one reading of the clock, when it begins. Over tokio, a timer of its own
//! bounds an exchange.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::socket::Socket;
use crate::execution::{slice_end, wait_end};

/// The part of its timeout by which a wait may be too long.
const SLACK: u32 = 50;

/// What a connection stands on: a socket, or whatever encrypts one.
pub(crate) trait ByteStream: Debug + Send {
    /// Receives what there is, at least a byte; 0 means that the server has closed the connection.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Sends what fits of these pieces, at least a byte.
    fn poll_send(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Receives what there is, without waiting: [`WouldBlock`](io::ErrorKind::WouldBlock) if there is nothing.
    fn receive_at_once(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Bounds every wait of a blocking stream from `now` on: all of them together by `timeout`.
    fn set_deadline(&mut self, now: Instant, timeout: Duration);

    /// Whether nothing has arrived, not even the end: what a connection between exchanges looks like. Of an encrypted
    /// stream, nothing that is left when it is decrypted.
    fn is_quiet(&mut self) -> bool;
}

#[derive(Debug)]
pub(super) struct BlockingStream {
    socket: Socket,
    deadline: Instant,
    /// The time until the deadline, while nothing has waited since that was set.
    whole: Option<Duration>,
    /// What the kernel's timeout is set to.
    receive_timeout: Duration,
}

impl BlockingStream {
    /// Takes over a connected socket, and makes it blocking.
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
                // A signal is no failure.
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
                // The caller's time between two slices is not the server's.
                self.socket.receive_at_once(buffer)
            } else {
                return timed_out(until, self.deadline);
            };
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return timed_out(until, self.deadline),
                // The loop goes on with the time that is left.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => return Poll::Ready(received),
            }
        }
    }

    /// Has the next receive wait for about so long.
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

/// What has become of a wait that has come to its end without anything.
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
    /// A slow machine, not a wait that starts over: a peer here would keep one going for tens of seconds.
    const MUCH_TOO_LONG: Duration = Duration::from_secs(5);

    /// A stream, and its peer in a thread of its own, until the stream is dropped.
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
    fn a_peer_that_answers_byte_by_byte_does_not_prolong_a_read() {
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
    fn a_timeout_that_was_shortened_is_set_again() {
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
    fn a_wait_is_left_at_the_end_of_a_slice_and_gone_on_with_in_the_next() {
        let (say, said) = channel();
        let mut stream = stream(move |mut peer| {
            said.recv().unwrap();
            peer.write_all(b"late").unwrap();
            let _ = peer.read(&mut [0]);
        });
        stream.deadline = Instant::now() + 60 * TIMEOUT;
        let mut buffer = [0; 16];
        assert!(in_slice(Instant::now() + TIMEOUT / 20, || stream.receive(&mut buffer)).is_pending());
        say.send(()).unwrap();
        let received = in_slice(Instant::now() + MUCH_TOO_LONG, || stream.receive(&mut buffer));
        assert_eq!(now(received).unwrap(), 4);
    }

    #[test]
    fn what_has_come_between_two_slices_is_taken_after_the_deadline_too() {
        let (say, said) = channel();
        let mut stream = stream(move |mut peer| {
            peer.write_all(b"late").unwrap();
            say.send(()).unwrap();
            let _ = peer.read(&mut [0]);
        });
        said.recv().unwrap();
        stream.deadline = Instant::now();
        let mut buffer = [0; 16];
        let mut receive = || now(in_slice(Instant::now() + MUCH_TOO_LONG, || stream.receive(&mut buffer)));
        assert_eq!(receive().unwrap(), 4);
        assert_eq!(receive().unwrap_err().kind(), io::ErrorKind::TimedOut, "no more than that");
    }

    /// Of a stream that waits until it is ready.
    fn now<T>(polled: Poll<T>) -> T {
        match polled {
            Poll::Ready(ready) => ready,
            Poll::Pending => panic!("a blocking stream has suspended"),
        }
    }
}
