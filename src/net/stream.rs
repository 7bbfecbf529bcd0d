//! A connected socket with a deadline, blocking or tokio's, behind one interface.
//!
//! Protocols are written once, as asynchronous code. Over a blocking stream every future here is ready at its first poll.
//!
//! # Deadlines
//!
//! A blocking exchange has one deadline. The kernel's timeout for receiving is set when the stream is made; before each wait
//! the time that is left is compared with what is set, and set anew only where they differ by more than a fiftieth: after a
//! slow write, a reply in pieces, or a signal. Sending waits only where the socket has no room. So a normal exchange is two
//! system calls. Over tokio, the caller's timer is the deadline.

use std::io;
use std::time::{Duration, Instant};

use super::socket::Socket;
#[cfg(feature = "tokio")]
use super::tokio_socket::TokioSocket;

/// The part of its timeout by which a wait may be too long.
const SLACK: u32 = 50;

#[derive(Debug)]
pub(crate) struct Stream {
    transport: Transport,
    /// Whether anything was received since [`begin`](Stream::begin).
    answered: bool,
}

#[derive(Debug)]
enum Transport {
    Blocking(Blocking),
    #[cfg(feature = "tokio")]
    Tokio(TokioSocket),
}

#[derive(Debug)]
struct Blocking {
    socket: Socket,
    deadline: Instant,
    /// What the kernel's timeout is set to.
    receive_timeout: Duration,
}

impl Stream {
    /// Takes over a connected socket, and makes it blocking.
    pub(crate) fn blocking(socket: Socket, timeout: Duration) -> io::Result<Stream> {
        socket.set_blocking()?;
        socket.set_receive_timeout(timeout)?;
        let deadline = Instant::now() + timeout;
        let blocking = Blocking { socket, deadline, receive_timeout: timeout };
        Ok(Stream { transport: Transport::Blocking(blocking), answered: false })
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn tokio(socket: TokioSocket) -> Stream {
        Stream { transport: Transport::Tokio(socket), answered: false }
    }

    /// The socket for a protocol that drives it itself.
    ///
    /// # Panics
    ///
    /// If the stream is blocking.
    #[cfg(feature = "tokio")]
    pub(crate) fn into_tokio(self) -> TokioSocket {
        match self.transport {
            Transport::Tokio(socket) => socket,
            Transport::Blocking(_) => unreachable!("a blocking stream is never handed to tokio"),
        }
    }

    /// Starts an exchange.
    #[inline]
    pub(crate) fn begin(&mut self, deadline: Instant) {
        self.answered = false;
        #[cfg_attr(not(feature = "tokio"), expect(irrefutable_let_patterns))]
        if let Transport::Blocking(blocking) = &mut self.transport {
            blocking.deadline = deadline;
        }
    }

    /// Gives the exchange more time.
    pub(super) fn prolong(&mut self, by: Duration) {
        #[cfg_attr(not(feature = "tokio"), expect(irrefutable_let_patterns))]
        if let Transport::Blocking(blocking) = &mut self.transport {
            blocking.deadline += by;
        }
    }

    pub(super) fn is_blocking(&self) -> bool {
        matches!(self.transport, Transport::Blocking(_))
    }

    /// Whether a byte of the reply has arrived.
    pub(crate) fn answered(&self) -> bool {
        self.answered
    }

    /// Whether nothing has arrived between two exchanges, not even the end.
    pub(crate) fn is_quiet(&self) -> bool {
        match &self.transport {
            Transport::Blocking(blocking) => blocking.socket.is_quiet(),
            #[cfg(feature = "tokio")]
            Transport::Tokio(socket) => socket.socket().is_quiet(),
        }
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.transport {
            Transport::Blocking(blocking) => blocking.send_all(bytes),
            #[cfg(feature = "tokio")]
            Transport::Tokio(socket) => tokio_send_all(socket, bytes).await,
        }
    }

    /// Receives what there is, at least a byte; 0 means that the server has closed the connection.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let received = match &mut self.transport {
            Transport::Blocking(blocking) => blocking.receive(buffer)?,
            #[cfg(feature = "tokio")]
            Transport::Tokio(socket) => tokio_receive(socket, buffer).await?,
        };
        self.answered |= received > 0;
        Ok(received)
    }
}

/// For a parser that pulls, over a blocking stream.
impl io::Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.transport {
            Transport::Blocking(blocking) => {
                let received = blocking.receive(buffer)?;
                self.answered |= received > 0;
                Ok(received)
            }
            #[cfg(feature = "tokio")]
            Transport::Tokio(_) => unreachable!("a tokio stream is never read in a blocking way"),
        }
    }
}

impl Blocking {
    fn send_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            time_left(self.deadline)?;
            match self.socket.send(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.wait_writable(self.deadline)?,
                Err(error) => tolerate_interruption(error)?,
            }
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = time_left(self.deadline)?;
            if differ(self.receive_timeout, left) {
                self.socket.set_receive_timeout(left)?;
                self.receive_timeout = left;
            }
            match self.socket.receive(buffer) {
                Ok(received) => return Ok(received),
                Err(error) => tolerate_interruption(error)?,
            }
        }
    }
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn differ(set: Duration, left: Duration) -> bool {
    set.abs_diff(left) > set / SLACK
}

/// A signal is no failure: the loop goes on with the time that is left.
fn tolerate_interruption(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        _ => Err(error),
    }
}

#[cfg(feature = "tokio")]
async fn tokio_send_all(socket: &mut TokioSocket, mut bytes: &[u8]) -> io::Result<()> {
    use std::pin::Pin;
    use tokio::io::AsyncWrite;

    while !bytes.is_empty() {
        let sent = std::future::poll_fn(|cx| Pin::new(&mut *socket).poll_write(cx, bytes)).await?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

#[cfg(feature = "tokio")]
async fn tokio_receive(socket: &mut TokioSocket, buffer: &mut [u8]) -> io::Result<usize> {
    use std::pin::Pin;
    use tokio::io::{AsyncRead, ReadBuf};

    let mut space = ReadBuf::new(buffer);
    std::future::poll_fn(|cx| Pin::new(&mut *socket).poll_read(cx, &mut space)).await?;
    Ok(space.filled().len())
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::{Socket, Stream};

    const TIMEOUT: Duration = Duration::from_millis(200);
    /// A slow machine, not a wait that starts over: a peer here would keep one going for tens of seconds.
    const MUCH_TOO_LONG: Duration = Duration::from_secs(5);

    /// A stream, and its peer in a thread of its own, until the stream is dropped.
    fn stream(peer: impl FnOnce(UnixStream) + Send + 'static) -> Stream {
        let path =
            std::env::temp_dir().join(format!("prefork-cache-stream-{}-{:p}", std::process::id(), &raw const peer));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let socket = Socket::unix().unwrap();
        let _ = socket.start_connecting_unix(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        thread::spawn(move || peer(listener.accept().unwrap().0));
        Stream::blocking(socket, TIMEOUT).unwrap()
    }

    fn ready<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ready) => ready,
            Poll::Pending => panic!("a blocking stream suspended"),
        }
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
        stream.begin(started + TIMEOUT);
        let written = ready(stream.write_all(&vec![0; 32 << 20]));
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
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
        stream.begin(started + TIMEOUT);
        let failed = loop {
            if let Err(error) = ready(stream.read(&mut [0; 16])) {
                break error;
            }
        };
        assert_eq!(failed.kind(), std::io::ErrorKind::TimedOut);
        assert!(started.elapsed() < MUCH_TOO_LONG, "{:?}", started.elapsed());
    }

    #[test]
    fn a_timeout_that_was_shortened_is_set_anew() {
        let mut stream = stream(|mut peer| {
            thread::sleep(TIMEOUT / 2);
            peer.write_all(b"late").unwrap();
            let _ = peer.read(&mut [0]);
        });
        stream.begin(Instant::now() + TIMEOUT / 4);
        assert!(ready(stream.read(&mut [0; 16])).is_err());
        stream.begin(Instant::now() + 60 * TIMEOUT);
        assert_eq!(ready(stream.read(&mut [0; 16])).unwrap(), 4);
    }
}
