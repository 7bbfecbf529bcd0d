//! A TLS stream over another stream.
//!
//! rustls has the session and does no I/O. This module moves bytes between it and the stream below, which blocks or
//! returns pending. So blocking and asynchronous callers share one implementation, and deadlines are those of the
//! stream below.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, Read, Write};
use std::mem;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use rustls::{ClientConnection, IoState};

use super::config::Tls;
use super::refusal::handshake_failed;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::execution::Execution;
use crate::lifecycle::generation;
use crate::net::socket::StaleSocket;
use crate::net::stream::ByteStream;
use crate::net::write_buffer::PIECES;

/// The size in bytes of the receive buffer, which the longest encrypted record fits into.
const RECEIVED: usize = 18 << 10;

/// The largest number of plaintext bytes in a record.
const RECORD: usize = 16 << 10;

/// The length of a command's line end.
const END: usize = 2;

/// Encrypts a stream that was just connected. The handshake has until `deadline`, each exchange after it `timeout`.
pub(in crate::net) async fn secure(
    tls: &Tls,
    execution: Execution,
    endpoint: &Endpoint,
    mut inner: Box<dyn ByteStream>,
    deadline: Instant,
    timeout: Duration,
) -> Result<Box<dyn ByteStream>> {
    let name = tls.server_name(endpoint)?;
    let now = Instant::now();
    inner.set_deadline(now, deadline.saturating_duration_since(now));
    let handshake = async {
        let mut stream = TlsStream::new(tls, name.clone(), inner)?;
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    };
    let stream = bounded(execution, deadline, handshake).await;
    let mut stream = stream.map_err(|error| handshake_failed(endpoint, &name, error))?;
    tls.warn(endpoint);
    stream.set_deadline(Instant::now(), timeout);
    Ok(Box::new(stream))
}

/// Applies a deadline to a handshake in a runtime. Inline, the blocking stream has the deadline.
#[cfg_attr(not(feature = "tokio"), expect(unused_variables))]
async fn bounded<T>(
    execution: Execution,
    deadline: Instant,
    handshake: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match execution {
        Execution::Inline => handshake.await,
        #[cfg(feature = "tokio")]
        Execution::Tokio(_) => tokio::time::timeout_at(deadline.into(), handshake)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
    }
}

/// An encrypted stream. Its drop sends nothing: rustls sends `close_notify` only on request.
#[derive(Debug)]
struct TlsStream {
    session: ClientConnection,
    /// The generation of the process that made the connection.
    generation: u64,
    inner: Box<dyn ByteStream>,
    /// `received[start..end]` has been received and not yet decrypted.
    received: Box<[u8]>,
    start: usize,
    end: usize,
    /// The number of plaintext bytes that were encrypted and not completely sent. They count as sent once they are.
    encrypted: usize,
    /// Whether the line end of a long write is sent in a record of its own. Memcached (1.6.18) reads a value out of a
    /// record and then waits for the socket, although the rest of the record is decrypted: it continues only when more
    /// bytes arrive.
    splits_line_end: bool,
    /// Whether the previous write was longer than a record, so that it may have been split at any byte.
    was_long: bool,
}

impl TlsStream {
    fn new(tls: &Tls, name: rustls::pki_types::ServerName<'static>, inner: Box<dyn ByteStream>) -> io::Result<Self> {
        let session = ClientConnection::new(tls.config().clone(), name).map_err(broken)?;
        let received = vec![0; RECEIVED].into();
        Ok(TlsStream {
            session,
            generation: generation(),
            inner,
            received,
            start: 0,
            end: 0,
            encrypted: 0,
            splits_line_end: tls.forgets_the_rest(),
            was_long: false,
        })
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Err(error) = ready!(self.poll_flush(cx)) {
                return Poll::Ready(Err(self.cause().unwrap_or(error)));
            }
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server closed the connection",
                )));
            }
            self.decrypt(cx)?;
        }
    }

    /// Encrypts as much of these pieces as the session has room for. Returns the number of bytes.
    fn encrypt(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let is_long = length > RECORD;
        let may_be_split = mem::replace(&mut self.was_long, is_long) || is_long;
        let mut writer = self.session.writer();
        match pieces {
            [before @ .., last] if self.splits_line_end && may_be_split => {
                let (of_last, end) = last.split_at(last.len().saturating_sub(END));
                let mut body: ArrayVec<IoSlice<'_>, PIECES> = before.iter().map(|piece| IoSlice::new(piece)).collect();
                body.push(IoSlice::new(of_last));
                let encrypted = writer.write_vectored(&body)?;
                let is_all = encrypted + end.len() == length;
                Ok(encrypted + if is_all { writer.write(end)? } else { 0 })
            }
            pieces => writer.write_vectored(pieces),
        }
    }

    /// Sends the encrypted bytes.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let mut below = Below { stream: &mut *self.inner, cx };
            match self.session.write_tls(&mut below) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Receives, unless there are bytes to decrypt. Returns the number of bytes to decrypt; 0 is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.start == self.end {
            let count = ready!(self.inner.poll_receive(cx, &mut self.received))?;
            (self.start, self.end) = (0, count);
        }
        Poll::Ready(Ok(self.end - self.start))
    }

    /// Decrypts received bytes, until there is plaintext to read or no received byte is left.
    fn decrypt(&mut self, cx: &mut Context<'_>) -> io::Result<IoState> {
        loop {
            // rustls takes a read of 0 bytes for the end of the stream.
            if self.start < self.end {
                let mut bytes = &self.received[self.start..self.end];
                self.session.read_tls(&mut bytes)?;
                self.start = self.end - bytes.len();
            }
            let state = self.session.process_new_packets().map_err(|error| {
                // Sends the alert with the reason, if the stream has room for it.
                let _ = self.poll_flush(cx);
                broken(error)
            })?;
            if state.peer_has_closed() {
                self.start = self.end;
            }
            if self.start == self.end || state.plaintext_bytes_to_read() > 0 {
                return Ok(state);
            }
        }
    }

    /// Returns why sending failed, if the server has sent an alert.
    fn cause(&mut self) -> Option<io::Error> {
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            if self.start == self.end {
                (self.start, self.end) = (0, self.inner.receive_at_once(&mut self.received).ok()?);
                if self.end == 0 {
                    return None;
                }
            }
            match self.decrypt(cx) {
                Err(error) => return Some(error),
                Ok(state) if state.plaintext_bytes_to_read() > 0 => return None,
                Ok(_) => {}
            }
        }
    }

    /// Fails in a process that inherited the stream: neither its keys nor its decrypted bytes are used there.
    fn check_owner(&self) -> io::Result<()> {
        if self.generation == generation() { Ok(()) } else { Err(io::Error::other(StaleSocket)) }
    }
}

impl ByteStream for TlsStream {
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.check_owner()?;
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received),
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(Ok(0));
            }
            self.decrypt(cx)?;
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.check_owner()?;
        if self.encrypted == 0 {
            self.encrypted = self.encrypt(pieces)?;
        }
        match ready!(self.poll_flush(cx)) {
            Ok(()) => Poll::Ready(Ok(mem::take(&mut self.encrypted))),
            Err(error) => Poll::Ready(Err(self.cause().unwrap_or(error))),
        }
    }

    fn receive_at_once(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check_owner()?;
        if self.is_quiet() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.session.reader().read(buffer)
    }

    fn set_deadline(&mut self, now: Instant, timeout: Duration) {
        self.inner.set_deadline(now, timeout);
    }

    /// Processes messages that carry no plaintext, such as the session tickets of TLS 1.3.
    fn is_quiet(&mut self) -> bool {
        if self.check_owner().is_err() {
            return false;
        }
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            match self.decrypt(cx) {
                Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {}
                _ => return false,
            }
            match self.inner.receive_at_once(&mut self.received) {
                Ok(0) => return false,
                Ok(count) => (self.start, self.end) = (0, count),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}

/// The stream below as a [`Write`], for rustls.
struct Below<'a, 'c> {
    stream: &'a mut dyn ByteStream,
    cx: &'a mut Context<'c>,
}

impl Write for Below<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.stream.poll_send(self.cx, pieces) {
            Poll::Ready(sent) => sent,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{self, IoSlice, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::task::{Context, Poll, Waker};
    use std::thread::{self, JoinHandle};
    use std::time::{Duration, Instant};

    use rustls::ServerConnection;
    use support::certificates::Authority;
    use support::encryptor::server_config;
    use support::servers::Encryption;
    use support::wait::until;

    use super::{ByteStream, Endpoint, Execution, Result, Tls, secure};
    use crate::net::dial::dial;
    use crate::net::settings::Settings;
    use crate::net::tls::TlsOptions;

    const TIMEOUT: Duration = Duration::from_secs(20);

    /// An action of the server.
    type Step = Box<dyn FnOnce(&mut ServerConnection, &mut TcpStream) + Send>;

    /// A server in a thread of its own.
    struct Peer {
        steps: Sender<Step>,
        done: Receiver<()>,
        thread: JoinHandle<()>,
    }

    impl Peer {
        /// Runs an action in the server, and returns when it is done.
        fn run(&self, step: impl FnOnce(&mut ServerConnection, &mut TcpStream) + Send + 'static) {
            self.steps.send(Box::new(step)).unwrap();
            self.done.recv().unwrap();
        }

        /// Ends the server, which closes its socket.
        fn stop(self) {
            drop(self.steps);
            self.thread.join().unwrap();
        }
    }

    fn flush(session: &mut ServerConnection, socket: &mut TcpStream) {
        while session.wants_write() {
            session.write_tls(socket).unwrap();
        }
    }

    /// Returns a stream and its server after the handshake. The server has not sent its session tickets yet.
    fn pair() -> (Box<dyn ByteStream>, Peer) {
        let authority = Authority::new();
        let encryption = Encryption::by(&authority);
        let config = server_config(&encryption.identity);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (steps, next) = channel::<Step>();
        let (doing, done) = channel();
        let thread = thread::spawn(move || {
            let mut socket = listener.accept().unwrap().0;
            let mut session = ServerConnection::new(config).unwrap();
            while session.is_handshaking() {
                session.read_tls(&mut socket).unwrap();
                session.process_new_packets().unwrap();
                if session.is_handshaking() {
                    flush(&mut session, &mut socket);
                }
            }
            while let Ok(step) = next.recv() {
                step(&mut session, &mut socket);
                doing.send(()).unwrap();
            }
        });
        let options = TlsOptions { ca: Some(encryption.ca), ..TlsOptions::default() };
        let tls = Tls::new(options).unwrap();
        let endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port };
        let deadline = Instant::now() + TIMEOUT;
        let connected = async {
            let socket = dial(Execution::Inline, &endpoint, deadline, &Settings::default()).await?;
            secure(&tls, Execution::Inline, &endpoint, socket, deadline, TIMEOUT).await
        };
        let connected: Result<_> = poll_once(connected);
        (connected.unwrap(), Peer { steps, done, thread })
    }

    fn poll_once<T>(blocking: impl Future<Output = T>) -> T {
        match std::pin::pin!(blocking).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("a blocking stream suspended"),
        }
    }

    fn receive(stream: &mut dyn ByteStream) -> io::Result<Vec<u8>> {
        let mut buffer = [0; 100];
        let count = poll_once(poll_fn(|cx| stream.poll_receive(cx, &mut buffer)))?;
        Ok(buffer[..count].to_vec())
    }

    fn send(stream: &mut dyn ByteStream, pieces: &[&[u8]]) -> usize {
        let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        poll_once(poll_fn(|cx| stream.poll_send(cx, &pieces))).unwrap()
    }

    #[test]
    fn a_stream_with_session_tickets_is_quiet_and_with_a_reply_is_not() {
        let (mut stream, peer) = pair();
        assert!(stream.is_quiet());
        // Sends the session tickets.
        peer.run(flush);
        peer.run(|session, socket| {
            session.refresh_traffic_keys().unwrap();
            flush(session, socket);
        });
        assert!(stream.is_quiet(), "neither tickets nor new keys are plaintext");
        peer.run(|session, socket| {
            session.writer().write_all(b"surplus").unwrap();
            flush(session, socket);
        });
        until("the reply has arrived", || !stream.is_quiet());
        assert!(!stream.is_quiet(), "the check does not discard the reply");
        assert_eq!(receive(&mut *stream).unwrap(), b"surplus");
        assert!(stream.is_quiet());
        peer.stop();
        until("the end has arrived", || !stream.is_quiet());
        assert_eq!(receive(&mut *stream).unwrap(), b"", "the end");
    }

    #[test]
    fn a_close_notify_is_the_end_of_the_stream() {
        let (mut stream, peer) = pair();
        peer.run(|session, socket| {
            session.send_close_notify();
            flush(session, socket);
        });
        until("the close_notify has arrived", || !stream.is_quiet());
        assert_eq!(receive(&mut *stream).unwrap(), b"");
        peer.stop();
    }

    #[test]
    fn the_drop_of_a_stream_sends_nothing() {
        let (mut stream, peer) = pair();
        assert_eq!(send(&mut *stream, &[b"last ", b"words"]), 10);
        drop(stream);
        peer.run(|session, socket| {
            let mut received = Vec::new();
            socket.read_to_end(&mut received).unwrap();
            let mut received = received.as_slice();
            session.read_tls(&mut received).unwrap();
            let state = session.process_new_packets().unwrap();
            assert_eq!(state.plaintext_bytes_to_read(), 10);
            assert!(!state.peer_has_closed() && received.is_empty(), "no close_notify");
        });
        peer.stop();
    }

    #[test]
    fn a_damaged_record_is_an_error() {
        let (mut stream, peer) = pair();
        peer.run(|session, socket| {
            session.writer().write_all(b"damaged").unwrap();
            let mut record = Vec::new();
            while session.wants_write() {
                session.write_tls(&mut record).unwrap();
            }
            *record.last_mut().unwrap() ^= 1;
            socket.write_all(&record).unwrap();
        });
        assert_eq!(receive(&mut *stream).unwrap_err().kind(), io::ErrorKind::InvalidData);
        peer.stop();
    }
}
