//! A connection to a server, and the trait that describes a protocol.
//!
//! # Replies are matched to their requests
//!
//! A reply is matched to its request by order alone. After one surplus reply, every request would get the reply to
//! another one. So a reply is handed out only once a *proof* has arrived after it: a frame that repeats a token which
//! only this connection has sent. In a protocol whose commands carry tokens, a reply proves itself and the replies
//! before it. In other protocols every write ends with a *marker*, a command that makes the server repeat a random
//! token.

use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::io;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::discovery::Discovery;
use super::frame::{Cut, Frame, FrameReader, Framing};
use super::join_all::ExchangeGroup;
use super::stream::ByteStream;
use super::tls::Tls;
use super::write_buffer::WriteBuffer;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::net::io_errors::io_error;

/// A protocol whose replies come in the order of their requests, as a [`Link`](super::Link) uses it.
pub(crate) trait Protocol: Debug + Send + Sync + Sized + 'static {
    type Framing: Framing;
    /// A request, which can be written more than once.
    type Request: Send + Sync;
    /// An incomplete reply, to which frames are added.
    type Partial: Send;
    type Reply: Send;

    fn endpoint(&self) -> &Endpoint;

    /// How the endpoint is looked up, if it can change.
    fn discovery(&self) -> Option<&Discovery> {
        None
    }

    /// The TLS configuration, if connections are encrypted.
    fn tls(&self) -> Option<&Tls> {
        None
    }

    fn framing(&self) -> Self::Framing;

    /// The length in bytes of the longest value of a reply that is kept.
    fn max_value(&self) -> usize;

    /// The number of *levels*, the ways to greet a server. Level 0 is the best; each level requires less of the server
    /// than the one before.
    const LEVELS: usize = 1;

    /// The best level that the server is known to support.
    fn level(&self) -> usize {
        0
    }

    /// The level to try next.
    fn next_level(&self) -> usize {
        0
    }

    /// Records that the server closed the connection during a greeting at this level.
    fn hung_up(&self, _level: usize) {}

    /// Records that the server supports this level and no better one.
    fn keep_level(&self, _level: usize) {}

    /// Does the handshake and the login, over a connection that does not use markers yet. Returns how the connection's
    /// replies are proven.
    fn greet(&self, connection: &mut Connection<Self>, level: usize) -> impl Future<Output = Result<Marking>> + Send;

    /// Returns whether a request changes nothing, so that it may be reordered.
    fn is_read(request: &Self::Request) -> bool;

    /// The key of a read; the first of several.
    fn key(request: &Self::Request) -> &[u8];

    /// The length in bytes of the longest value in a reply.
    fn longest_value(reply: &Self::Reply) -> usize;

    /// Appends an encoded request. Returns the reply to it, which has no frames yet.
    fn write(&self, request: &Self::Request, outgoing: &mut WriteBuffer) -> Self::Partial;

    /// Adds a frame to a reply.
    ///
    /// # Errors
    ///
    /// If the frame cannot be part of the reply. The connection must not be used again.
    fn accept(&self, partial: &mut Self::Partial, frame: Frame<'_>) -> Result<Accepted>;

    /// Adds complete frames of the most frequent kind at the beginning of `bytes` to a reply, if `bytes` begins with
    /// such frames: without a scan, in order to be faster than [`accept`](Protocol::accept). Stops before the reply to
    /// the marker with this token. Returns the length of the frames, and whether the reply is complete, which is then
    /// not proven.
    fn accept_run(&self, _: &mut Self::Partial, _bytes: &[u8], _marker: Option<&Token>) -> (usize, bool) {
        (0, false)
    }

    /// Returns the length of the reply to the marker with this token if `bytes` begins with it, or 0: without a scan,
    /// like [`accept_run`](Protocol::accept_run).
    fn accept_marker(&self, _bytes: &[u8], _token: &Token) -> usize {
        0
    }

    /// The last error reply among the frames of this reply.
    fn refusal(&self, partial: &Self::Partial) -> Option<Error>;

    /// If a frame in place of a marker's reply is an error reply to the marker: the error, and whether it is temporary.
    fn refused_marker(&self, _: &Frame<'_>) -> Option<(Error, bool)> {
        None
    }

    /// Turns a complete reply into its final form.
    fn finish(partial: Self::Partial) -> Self::Reply;

    /// Returns whether a reply says that this is the wrong server, or that the connection may not be used any more.
    fn is_last(reply: &Self::Reply) -> bool;

    /// Returns whether a reply says that another server has replaced this one.
    fn is_replaced(_: &Self::Reply) -> bool {
        false
    }
}

/// The state of a reply after a frame was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    Incomplete,
    /// Complete; `proven` if its last frame is a proof.
    Complete {
        proven: bool,
    },
}

/// How replies are proven. The bytes are the marker's command up to the token. The token and a line end follow it, and
/// the reply to it ends with both.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Marking {
    /// By a marker at the end of each write.
    EveryWrite(&'static [u8]),
    /// By the tokens of the protocol's own commands, or by a marker if the last reply has no token.
    WhereUnproven(&'static [u8]),
    /// Not at all. A surplus reply is noticed only while no reply is awaited.
    Impossible,
}

/// A random number of 64 bits, as 16 letters of 4 bits each.
pub(crate) type Token = [u8; 16];

/// The generator of a connection's tokens, from a random seed.
#[derive(Debug)]
pub(super) struct Tokens(u64);

impl Tokens {
    pub(super) fn new() -> Result<Tokens> {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed)
            .map_err(|error| Error::with_source(ErrorKind::Other, "drawing a random number", error))?;
        Ok(Tokens(u64::from_le_bytes(seed)))
    }

    /// The next token: a number of SplitMix64 (Steele, Lea and Flood 2014).
    fn draw(&mut self) -> Token {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        let (low, high) = (letters(mixed as u32), letters((mixed >> 32) as u32));
        (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
    }

    /// Appends a marker. Returns its token.
    pub(super) fn write_marker(&mut self, command: &[u8], outgoing: &mut WriteBuffer) -> Token {
        let token = self.draw();
        let buffer = outgoing.buffer();
        buffer.extend_from_slice(command);
        buffer.extend_from_slice(&token);
        buffer.extend_from_slice(b"\r\n");
        token
    }
}

/// Encodes 32 bits as eight letters from `a` to `p`, one in each byte.
fn letters(bits: u32) -> u64 {
    let mut spread = u64::from(bits);
    spread = (spread | spread << 16) & 0x0000_FFFF_0000_FFFF;
    spread = (spread | spread << 8) & 0x00FF_00FF_00FF_00FF;
    spread = (spread | spread << 4) & 0x0F0F_0F0F_0F0F_0F0F;
    spread + u64::from_le_bytes([b'a'; 8])
}

/// Returns whether a frame is the reply to the marker with this token.
pub(super) fn is_proof(frame: &Frame<'_>, token: &Token) -> bool {
    frame.bytes.strip_suffix(b"\r\n").is_some_and(|line| line.ends_with(token))
}

/// A connection to a server, with its buffers.
#[derive(Debug)]
pub(crate) struct Connection<P: Protocol> {
    pub(super) endpoint: Endpoint,
    pub(super) stream: Box<dyn ByteStream>,
    pub(super) frames: FrameReader<P::Framing>,
    pub(super) outgoing: WriteBuffer,
    pub(super) marking: Marking,
    pub(super) tokens: Tokens,
    /// Whether a byte has arrived since the last exchange began.
    pub(super) has_received: bool,
    /// Whether the connection may be used again although the last exchange failed: every reply has arrived, and the
    /// reply to the marker was a temporary error. The next marker proves the replies before it.
    pub(super) is_usable_after_error: bool,
    pub(super) opened: Instant,
    /// When the last exchange began.
    pub(super) begun: Instant,
}

/// The time without an exchange after which a connection is checked before it is used.
pub(super) const CHECK_AFTER_IDLE: Duration = Duration::from_millis(10);

/// A request that was sent and its incomplete reply.
pub(super) struct Exchange<P: Protocol> {
    partial: P::Partial,
    marker: Option<Token>,
}

impl<P: Protocol> Connection<P> {
    /// Creates a connection over a connected stream, before the greeting.
    pub(super) fn new(protocol: &P, endpoint: &Endpoint, stream: Box<dyn ByteStream>) -> Result<Connection<P>> {
        let now = Instant::now();
        Ok(Connection {
            endpoint: endpoint.clone(),
            stream,
            frames: FrameReader::new(protocol.framing()),
            outgoing: WriteBuffer::default(),
            marking: Marking::Impossible,
            tokens: Tokens::new()?,
            has_received: false,
            is_usable_after_error: false,
            opened: now,
            begun: now,
        })
    }

    /// The endpoint that was dialled.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Does the handshake and the login.
    pub(super) async fn greet(&mut self, protocol: &P, level: usize) -> Result<()> {
        self.marking = protocol.greet(self, level).await?;
        self.frames.allow(protocol.max_value());
        Ok(())
    }

    /// Sends a request and receives its reply, for a greeting.
    pub(crate) async fn ask(&mut self, protocol: &P, request: &P::Request) -> Result<P::Reply> {
        let exchange = self.send(protocol, request).await?;
        self.receive(protocol, exchange).await
    }

    /// Sends a marker. Returns `Ok(())` if the reply has its token, or else the reply.
    pub(crate) async fn try_marker(&mut self, command: &[u8]) -> Result<Result<(), Vec<u8>>> {
        let token = self.tokens.write_marker(command, &mut self.outgoing);
        self.flush().await?;
        let frame = self.frame().await?;
        let reply = if is_proof(&frame, &token) { Ok(()) } else { Err(frame.bytes.to_vec()) };
        self.expect_no_surplus()?;
        Ok(reply)
    }

    /// Sends raw bytes, and returns the frame of the reply.
    pub(crate) async fn ask_raw(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.outgoing.buffer().extend_from_slice(bytes);
        self.flush().await?;
        let reply = self.frame().await?.bytes.to_vec();
        self.expect_no_surplus()?;
        Ok(reply)
    }

    /// Begins an exchange over a blocking stream. Returns its deadline.
    pub(super) fn begin(&mut self, now: Instant, timeout: Duration) -> Instant {
        self.begun = now;
        self.has_received = false;
        self.is_usable_after_error = false;
        self.stream.set_deadline(now, timeout);
        now + timeout
    }

    /// Returns whether the last exchange began more than [`CHECK_AFTER_IDLE`] ago, so that the server may have sent or
    /// closed something since.
    pub(super) fn was_idle(&self, now: Instant) -> bool {
        now - self.begun > CHECK_AFTER_IDLE
    }

    /// Sends a request: the first half of an exchange. After an error, here or in [`receive`](Connection::receive), the
    /// connection must not be used again unless `is_usable_after_error` is set.
    pub(super) async fn send(&mut self, protocol: &P, request: &P::Request) -> Result<Exchange<P>> {
        let partial = protocol.write(request, &mut self.outgoing);
        let marker = match self.marking {
            Marking::EveryWrite(command) => Some(self.tokens.write_marker(command, &mut self.outgoing)),
            Marking::WhereUnproven(_) | Marking::Impossible => None,
        };
        let mut exchange = Exchange { partial, marker };
        match self.flush().await {
            Ok(()) => Ok(exchange),
            Err(error) => {
                // The server may have sent the reason why it stopped reading, such as a value above its limit.
                let _ = poll_fn(|cx| self.poll_reply(protocol, &mut exchange.partial, cx)).await;
                Err(protocol.refusal(&exchange.partial).unwrap_or(error))
            }
        }
    }

    /// Lets the other exchanges of a group send before the reply to this one is read. If the reply has begun to arrive
    /// meanwhile, the deadline is extended by the time that this took.
    pub(super) async fn set_aside(&mut self, group: &ExchangeGroup, deadline: Instant) {
        let since = Instant::now();
        group.set_aside().await;
        let now = Instant::now();
        let extension = if self.stream.is_quiet() { Duration::ZERO } else { now - since };
        self.stream.set_deadline(now, (deadline + extension).saturating_duration_since(now));
    }

    /// Receives the reply and its proof: the second half of an exchange.
    pub(super) async fn receive(&mut self, protocol: &P, mut exchange: Exchange<P>) -> Result<P::Reply> {
        let proven = poll_fn(|cx| self.poll_reply(protocol, &mut exchange.partial, cx)).await?;
        if let (Marking::WhereUnproven(command), false) = (self.marking, proven) {
            exchange.marker = Some(self.tokens.write_marker(command, &mut self.outgoing));
            self.flush().await?;
        }
        if let Some(token) = exchange.marker {
            let marker = poll_fn(|cx| self.poll_marker(protocol, &token, cx)).await;
            let refusal = marker.map_err(|error| protocol.refusal(&exchange.partial).unwrap_or(error))?;
            if let Some((error, is_temporary)) = refusal {
                self.expect_no_surplus()?;
                self.is_usable_after_error = is_temporary;
                return Err(protocol.refusal(&exchange.partial).unwrap_or(error));
            }
        }
        self.expect_no_surplus()?;
        Ok(P::finish(exchange.partial))
    }

    /// Fails if anything but unsolicited frames has arrived after the reply.
    fn expect_no_surplus(&mut self) -> Result<()> {
        if self.next_cut()?.is_none() && self.frames.is_empty() { Ok(()) } else { Err(surplus(&self.endpoint)) }
    }

    /// Receives the rest of a reply. Returns whether it is proven.
    fn poll_reply(&mut self, protocol: &P, partial: &mut P::Partial, cx: &mut Context<'_>) -> Poll<Result<bool>> {
        loop {
            if self.frames.take(|bytes| protocol.accept_run(partial, bytes, None)) {
                return Poll::Ready(Ok(false));
            }
            match self.next_frame()? {
                Some(frame) => {
                    if let Accepted::Complete { proven } = protocol.accept(partial, frame)? {
                        return Poll::Ready(Ok(proven));
                    }
                }
                None => ready!(self.poll_more(cx))?,
            }
        }
    }

    /// Receives the reply to the marker. If it is another one, returns the error, and whether that is temporary.
    fn poll_marker(
        &mut self,
        protocol: &P,
        token: &Token,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(Error, bool)>>> {
        loop {
            let is_proven = self.frames.take(|bytes| {
                let length = protocol.accept_marker(bytes, token);
                (length, length > 0)
            });
            if is_proven {
                return Poll::Ready(Ok(None));
            }
            match self.next_frame()? {
                Some(frame) if is_proof(&frame, token) => return Poll::Ready(Ok(None)),
                Some(frame) => return Poll::Ready(Ok(Some(unproven(protocol, &frame)))),
                None => ready!(self.poll_more(cx))?,
            }
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let Connection { endpoint, stream, outgoing, .. } = self;
        let sent = poll_fn(|cx| outgoing.poll_send(&mut **stream, cx)).await;
        sent.map_err(|error| io_error("send to", endpoint, error))
    }

    async fn frame(&mut self) -> Result<Frame<'_>> {
        let cut = poll_fn(|cx| {
            loop {
                match self.next_cut()? {
                    Some(cut) => return Poll::Ready(Ok(cut)),
                    None => ready!(self.poll_more(cx))?,
                }
            }
        });
        cut.await.map(|cut| self.frames.frame(cut))
    }

    fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        Ok(self.next_cut()?.map(|cut| self.frames.frame(cut)))
    }

    fn next_cut(&mut self) -> Result<Option<Cut>> {
        self.frames.next().map_err(|what| malformed(&self.endpoint, &what))
    }

    /// Receives more bytes.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let received = ready!(self.stream.poll_receive(cx, self.frames.space()));
        let count = at_least_one(received).map_err(|error| io_error("receive from", &self.endpoint, error))?;
        self.frames.received(count);
        self.has_received = true;
        Poll::Ready(Ok(()))
    }
}

/// Turns a receive of 0 bytes, the end of the stream, into an error.
pub(super) fn at_least_one(received: io::Result<usize>) -> io::Result<usize> {
    match received? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
        count => Ok(count),
    }
}

pub(super) fn malformed(endpoint: &Endpoint, what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("{endpoint} sent {what}"))
}

pub(crate) fn foreign_reply_error(endpoint: &Endpoint) -> Error {
    malformed(endpoint, "a reply to another request")
}

/// The error for a frame that is not the reply to the awaited marker, and whether it is temporary: then the connection
/// may be used again.
pub(super) fn unproven<P: Protocol>(protocol: &P, frame: &Frame<'_>) -> (Error, bool) {
    protocol.refused_marker(frame).unwrap_or_else(|| (foreign_reply_error(protocol.endpoint()), false))
}

pub(super) fn surplus(endpoint: &Endpoint) -> Error {
    malformed(endpoint, "a surplus reply")
}

/// The first 80 bytes of an unexpected reply, quoted for an error text.
pub(crate) fn show(bytes: &[u8]) -> String {
    const SHOWN: usize = 80;
    let line = bytes.strip_suffix(b"\r\n").unwrap_or(bytes);
    format!("{:?}", String::from_utf8_lossy(&line[..line.len().min(SHOWN)]))
}
