//! Sockets, connections and pipelines. Every socket of the crate is opened and closed here, so that a child can cut the
//! inherited ones.
//!
//! From the top down:
//!
//! - A [`Link`] is the way to one [`Server`](server::Server) over one protocol. Blocking callers check a connection out
//!   of its [`Pool`](pool::Pool). Callers inside a tokio runtime share a [`pipeline`].
//! - A circuit [`Breaker`](breaker::Breaker) stops calls to a server that is down. A
//!   [`DialLimit`](dial_limit::DialLimit) stops callers from dialling a server of unknown health all at once.
//! - A [`Connection`] sends the contents of its [`WriteBuffer`], and cuts [`Frame`]s off a
//!   [`ByteStream`](stream::ByteStream).
//! - A byte stream is a [`Socket`](socket::Socket) with a deadline, or [`tls`] over one. A socket is entered in the
//!   ledger before it exists.
//! - The exchanges of an [`ExchangeGroup`], over several links, run at the same time.

mod breaker;
mod clock;
mod connection;
mod dial;
mod dial_limit;
mod discovery;
mod frame;
mod io_errors;
mod join_all;
mod link;
#[cfg(feature = "tokio")]
mod pipeline;
mod pool;
mod retry;
mod server;
mod settings;
mod socket;
mod stream;
mod tls;
#[cfg(feature = "tokio")]
mod tokio_stream;
mod wait_queue;
mod write_buffer;

#[cfg(feature = "redis")]
pub(crate) use clock::Stopwatch;
pub(crate) use connection::{Accepted, Connection, Marking, Protocol, Token, foreign_reply_error, show};
pub(crate) use dial::{ask_once, share_of_deadline};
pub(crate) use discovery::{Address, Directory, Discovery};
pub(crate) use frame::{Frame, Framing, Scan, short_length, short_value};
pub(crate) use join_all::{ExchangeGroup, join_all};
pub(crate) use link::Link;
pub(crate) use retry::Retry;
pub(crate) use settings::{Settings, Timeouts};
pub(crate) use tls::{Tls, TlsOptions};
pub(crate) use write_buffer::WriteBuffer;

/// The size in bytes above which a value is large: it is not copied into a shared buffer when it is sent, and is
/// received into a buffer of its own.
pub(crate) const LARGE: usize = 16 << 10;
