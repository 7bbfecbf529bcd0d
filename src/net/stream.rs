//! A connected socket with a deadline, blocking or tokio's, behind one interface.
//!
//! Protocols are written once, as asynchronous code. Over a blocking stream every future here is ready at its first poll.
//!
//! # Deadlines
//!
//! A blocking exchange has one deadline. The kernel's timeouts are set when the stream is made; before each wait the time
//! that is left is compared with what is set, and set anew only where they differ by more than [`SLACK`]: after a slow
//! write, a reply in pieces, or a signal. So a normal exchange is two system calls. Over tokio, the caller's timer is the
//! deadline.

use std::io;
use std::time::{Duration, Instant};

use super::socket::Socket;
#[cfg(feature = "tokio")]
use super::tokio_socket::TokioSocket;

/// How much longer than asked a wait may take.
const SLACK: Duration = Duration::from_millis(1);

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
    /// What the kernel's timeouts are set to.
    receive_timeout: Duration,
    send_timeout: Duration,
}

impl Stream {
    /// Takes over a connected socket, and makes it blocking.
    pub(crate) fn blocking(socket: Socket, timeout: Duration) -> io::Result<Stream> {
        socket.set_blocking()?;
        socket.set_receive_timeout(timeout)?;
        socket.set_send_timeout(timeout)?;
        let deadline = Instant::now() + timeout;
        let blocking = Blocking { socket, deadline, receive_timeout: timeout, send_timeout: timeout };
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
    #[cfg_attr(not(feature = "redis"), expect(dead_code))]
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
            let left = time_left(self.deadline)?;
            if differ(self.send_timeout, left) {
                self.socket.set_send_timeout(left)?;
                self.send_timeout = left;
            }
            match self.socket.send(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
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
    set.abs_diff(left) > SLACK
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
