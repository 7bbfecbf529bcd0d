//! A connection to a server, and what a protocol has to say for one to be used.
//!
//! # No foreign reply
//!
//! Replies come in the order of their requests, and that is all that tells whose they are: after one surplus reply
//! every request would be given another's. So no reply is handed out before a *proof* has arrived behind it: a frame
//! that repeats a token which only this connection has sent. In a protocol whose commands carry tokens, a reply proves
//! itself and those before it. Elsewhere every write ends with a *marker*, a command that has the server repeat a
//! random token.

use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::io;
use std::time::{Duration, Instant};

use super::discovery::Discovery;
use super::frame::{Frame, FrameReader, Framing};
use super::join_all::ExchangeGroup;
use super::stream::ByteStream;
use super::tls::Tls;
use super::write_buffer::WriteBuffer;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::net::io_errors::io_error;

/// What a [`Link`](super::Link) has to know of a protocol that answers in order.
pub(crate) trait Protocol: Debug + Send + Sync + Sized + 'static {
    type Framing: Framing;
    /// What is asked, and can be asked again.
    type Request: Send + Sync;
    /// A reply that is being put together.
    type Partial: Send;
    type Reply: Send;

    fn endpoint(&self) -> &Endpoint;

    /// How its endpoint is found, if it changes.
    fn discovery(&self) -> Option<&Discovery> {
        None
    }

    /// How its connections are encrypted, if they are.
    fn tls(&self) -> Option<&Tls> {
        None
    }

    fn framing(&self) -> Self::Framing;

    /// The largest value that is kept of a reply.
    fn max_value(&self) -> usize;

    /// In how many ways a server can be greeted; each asks less of it than the one before.
    const LEVELS: usize = 1;

    /// The best level that the server is known to take part in, and the one to try next.
    fn level(&self) -> usize {
        0
    }

    fn next_level(&self) -> usize {
        0
    }

    /// The server has closed the connection in the middle of a greeting at this level.
    fn hung_up(&self, _level: usize) {}

    /// The server takes part in this level, and in no better one.
    fn keep_level(&self, _level: usize) {}

    /// Handshake and login, over a connection on which nothing is marked yet. Returns how its writes are to be proven.
    fn greet(&self, connection: &mut Connection<Self>, level: usize) -> impl Future<Output = Result<Marking>> + Send;

    /// Whether a request changes nothing, so that it may be answered out of turn.
    fn is_read(request: &Self::Request) -> bool;

    /// What a read asks for; of several, the first.
    fn key(request: &Self::Request) -> &[u8];

    /// The length of the longest value in a reply.
    fn longest_value(reply: &Self::Reply) -> usize;

    /// Appends a request as it goes over the wire.
    fn write(&self, request: &Self::Request, outgoing: &mut WriteBuffer) -> Self::Partial;

    /// Adds a frame to a reply.
    ///
    /// # Errors
    ///
    /// Where it cannot be part of the reply: the connection is of no use any more.
    fn accept(&self, partial: &mut Self::Partial, frame: Frame<'_>) -> Result<Accepted>;

    /// The last thing that the server has refused in this reply.
    fn refusal(&self, partial: &Self::Partial) -> Option<Error>;

    /// Why the server does not answer a marker, if that is what a frame in its place says, and whether it is only for
    /// the moment.
    fn refused_marker(&self, _: &Frame<'_>) -> Option<(Error, bool)> {
        None
    }

    fn finish(partial: Self::Partial) -> Self::Reply;

    /// Whether the server has said that it is the wrong one, or lets this connection do nothing any more.
    fn is_last(reply: &Self::Reply) -> bool;

    /// Whether the server has said that another one has taken its place.
    fn is_replaced(_: &Self::Reply) -> bool {
        false
    }
}

/// What has become of a reply with one more frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    Incomplete,
    /// Complete, and its last frame a proof or not.
    Complete {
        proven: bool,
    },
}

/// How a reply is proven. A marker is a command up to its token, which a line end follows; the reply to it ends with
/// both.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Marking {
    /// By a marker at the end of each write.
    EveryWrite(&'static [u8]),
    /// By the tokens of its own commands, or by a marker where the last reply has none.
    WhereUnproven(&'static [u8]),
    /// Not at all: a surplus reply is noticed only while none is awaited.
    Impossible,
}

/// 64 random bits in letters, four in each.
pub(super) type Token = [u8; 16];

/// The tokens of a connection, which no other one has.
#[derive(Debug)]
pub(super) struct Tokens(u64);

impl Tokens {
    pub(super) fn new() -> Result<Tokens> {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed)
            .map_err(|error| Error::with_source(ErrorKind::Other, "drawing a random number", error))?;
        Ok(Tokens(u64::from_le_bytes(seed)))
    }

    /// The next number of SplitMix64 (Steele, Lea and Flood 2014).
    fn draw(&mut self) -> Token {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        let (low, high) = (letters(mixed as u32), letters((mixed >> 32) as u32));
        (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
    }

    pub(super) fn write_marker(&mut self, command: &[u8], outgoing: &mut WriteBuffer) -> Token {
        let token = self.draw();
        let buffer = outgoing.buffer();
        buffer.extend_from_slice(command);
        buffer.extend_from_slice(&token);
        buffer.extend_from_slice(b"\r\n");
        token
    }
}

/// Eight letters from a to p, one in each byte.
fn letters(bits: u32) -> u64 {
    let mut spread = u64::from(bits);
    spread = (spread | spread << 16) & 0x0000_FFFF_0000_FFFF;
    spread = (spread | spread << 8) & 0x00FF_00FF_00FF_00FF;
    spread = (spread | spread << 4) & 0x0F0F_0F0F_0F0F_0F0F;
    spread + u64::from_le_bytes([b'a'; 8])
}

/// Whether a frame is the reply to the marker with this token.
pub(super) fn is_proof(frame: &Frame<'_>, token: &Token) -> bool {
    frame.bytes.strip_suffix(b"\r\n").is_some_and(|line| line.ends_with(token))
}

#[derive(Debug)]
pub(crate) struct Connection<P: Protocol> {
    pub(super) endpoint: Endpoint,
    pub(super) stream: Box<dyn ByteStream>,
    pub(super) frames: FrameReader<P::Framing>,
    pub(super) outgoing: WriteBuffer,
    pub(super) marking: Marking,
    pub(super) tokens: Tokens,
    /// Whether a byte has arrived since the last exchange began.
    pub(super) answered: bool,
    /// Whether the last exchange has failed and yet everything was answered, its marker with a refusal for the moment.
    /// The next marker proves whatever comes before it.
    pub(super) is_in_step: bool,
    pub(super) opened: Instant,
    /// When the last exchange began.
    pub(super) begun: Instant,
}

/// After what time without an exchange a connection is looked at before it is used.
pub(super) const REST: Duration = Duration::from_millis(10);

/// A request that was sent, and the reply to it.
pub(super) struct Exchange<P: Protocol> {
    partial: P::Partial,
    marker: Option<Token>,
}

impl<P: Protocol> Connection<P> {
    /// Makes a connection of a connected stream.
    pub(super) fn new(protocol: &P, endpoint: &Endpoint, stream: Box<dyn ByteStream>) -> Result<Connection<P>> {
        let now = Instant::now();
        Ok(Connection {
            endpoint: endpoint.clone(),
            stream,
            frames: FrameReader::new(protocol.framing()),
            outgoing: WriteBuffer::default(),
            marking: Marking::Impossible,
            tokens: Tokens::new()?,
            answered: false,
            is_in_step: false,
            opened: now,
            begun: now,
        })
    }

    /// Where it leads to.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Handshake and login.
    pub(super) async fn greet(&mut self, protocol: &P, level: usize) -> Result<()> {
        self.marking = protocol.greet(self, level).await?;
        self.frames.allow(protocol.max_value());
        Ok(())
    }

    /// One request and its reply, for a greeting.
    pub(crate) async fn ask(&mut self, protocol: &P, request: &P::Request) -> Result<P::Reply> {
        let exchange = self.send(protocol, request).await?;
        self.receive(protocol, exchange).await
    }

    /// Whether this marker is answered with its token; if not, what was answered.
    pub(crate) async fn try_marker(&mut self, command: &[u8]) -> Result<Result<(), Vec<u8>>> {
        let token = self.tokens.write_marker(command, &mut self.outgoing);
        self.flush().await?;
        let frame = self.frame().await?;
        let answer = if is_proof(&frame, &token) { Ok(()) } else { Err(frame.bytes.to_vec()) };
        self.expect_no_more()?;
        Ok(answer)
    }

    /// Sends these bytes, and returns the frame that answers them.
    pub(crate) async fn ask_raw(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.outgoing.buffer().extend_from_slice(bytes);
        self.flush().await?;
        let answer = self.frame().await?.bytes.to_vec();
        self.expect_no_more()?;
        Ok(answer)
    }

    /// Begins an exchange over a blocking stream. Returns its deadline.
    pub(super) fn begin(&mut self, now: Instant, timeout: Duration) -> Instant {
        self.begun = now;
        self.answered = false;
        self.is_in_step = false;
        self.stream.set_deadline(now, timeout);
        now + timeout
    }

    /// Whether the last exchange was a while ago, so that the server may have sent something since.
    pub(super) fn has_rested(&self, now: Instant) -> bool {
        now - self.begun > REST
    }

    /// Sends a request: the first half of an exchange. After an error, here and below, the connection must not be used
    /// again.
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
                // It may have said why it does not read on: a value that is larger than it takes, say.
                let _ = self.receive_reply(protocol, &mut exchange.partial).await;
                Err(protocol.refusal(&exchange.partial).unwrap_or(error))
            }
        }
    }

    /// Lets the other exchanges of a group send before the reply to this one is read.
    pub(super) async fn set_aside(&mut self, group: &ExchangeGroup, deadline: Instant) {
        let since = Instant::now();
        group.set_aside().await;
        let now = Instant::now();
        let uncharged = if self.stream.is_quiet() { Duration::ZERO } else { now - since };
        self.stream.set_deadline(now, (deadline + uncharged).saturating_duration_since(now));
    }

    /// Receives the reply to what was sent, and the proof that it is.
    pub(super) async fn receive(&mut self, protocol: &P, mut exchange: Exchange<P>) -> Result<P::Reply> {
        let proven = self.receive_reply(protocol, &mut exchange.partial).await?;
        if let (Marking::WhereUnproven(command), false) = (self.marking, proven) {
            exchange.marker = Some(self.tokens.write_marker(command, &mut self.outgoing));
            self.flush().await?;
        }
        if let Some(token) = exchange.marker {
            let marker = self.frame().await;
            let marker = marker.map_err(|error| protocol.refusal(&exchange.partial).unwrap_or(error))?;
            if !is_proof(&marker, &token) {
                let (error, is_for_the_moment) = unproven(protocol, &marker);
                self.expect_no_more()?;
                self.is_in_step = is_for_the_moment;
                return Err(protocol.refusal(&exchange.partial).unwrap_or(error));
            }
        }
        self.expect_no_more()?;
        Ok(P::finish(exchange.partial))
    }

    /// Nothing but what the server says unasked may have come behind a reply.
    fn expect_no_more(&mut self) -> Result<()> {
        let more = self.frames.next().map_err(|what| malformed(&self.endpoint, &what))?;
        if more.is_none() && self.frames.is_empty() { Ok(()) } else { Err(surplus(&self.endpoint)) }
    }

    /// Returns whether the reply was proven.
    async fn receive_reply(&mut self, protocol: &P, partial: &mut P::Partial) -> Result<bool> {
        loop {
            if let Accepted::Complete { proven } = protocol.accept(partial, self.frame().await?)? {
                return Ok(proven);
            }
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let Connection { endpoint, stream, outgoing, .. } = self;
        let sent = poll_fn(|cx| outgoing.poll_send(&mut **stream, cx)).await;
        sent.map_err(|error| io_error("send to", endpoint, error))
    }

    async fn frame(&mut self) -> Result<Frame<'_>> {
        let Connection { endpoint, stream, frames, answered, .. } = self;
        let cut = loop {
            if let Some(cut) = frames.next().map_err(|what| malformed(endpoint, &what))? {
                break cut;
            }
            let received = poll_fn(|cx| stream.poll_receive(cx, frames.space())).await;
            let count = at_least_one(received).map_err(|error| io_error("receive from", endpoint, error))?;
            frames.received(count);
            *answered = true;
        };
        Ok(frames.frame(cut))
    }
}

/// What was received, unless it is the end.
pub(super) fn at_least_one(received: io::Result<usize>) -> io::Result<usize> {
    match received? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
        count => Ok(count),
    }
}

pub(super) fn malformed(endpoint: &Endpoint, what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("{endpoint} sent {what}"))
}

pub(crate) fn foreign(endpoint: &Endpoint) -> Error {
    malformed(endpoint, "a reply to another request")
}

/// Of what came in the place of a marker's answer, and whether the connection is of use all the same.
pub(super) fn unproven<P: Protocol>(protocol: &P, frame: &Frame<'_>) -> (Error, bool) {
    protocol.refused_marker(frame).unwrap_or_else(|| (foreign(protocol.endpoint()), false))
}

pub(super) fn surplus(endpoint: &Endpoint) -> Error {
    malformed(endpoint, "more than it was asked for")
}

/// The beginning of what cannot be understood, for an error.
pub(crate) fn show(bytes: &[u8]) -> String {
    const SHOWN: usize = 80;
    let line = bytes.strip_suffix(b"\r\n").unwrap_or(bytes);
    format!("{:?}", String::from_utf8_lossy(&line[..line.len().min(SHOWN)]))
}
