//! Every socket of this crate: dialled, owned and closed here, so that a child can cut the ones it inherited.
//!
//! From the top down: a [`Link`] is the way to one [`Server`](server::Server) over one protocol. Callers that block take
//! a connection out of its [`Pool`](pool::Pool), callers inside a tokio runtime share a [`pipeline`]; a
//! [`Breaker`](breaker::Breaker) keeps a server that is down from being dialled on every call, and a
//! [`DialLimit`](dial_limit::DialLimit) keeps callers from dialling it all at once. Either way a [`Connection`] writes what is
//! [`WriteBuffer`] and cuts [`Frame`]s off a [`ByteStream`](stream::ByteStream), which is a [`Socket`](socket::Socket)
//! with a deadline, entered in the ledger before it exists, or [`tls`] over one. In a [`ExchangeGroup`], exchanges over
//! several links run at the same time.

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
mod server;
mod socket;
mod stream;
mod tls;
#[cfg(feature = "tokio")]
mod tokio_stream;
mod wait_queue;
mod write_buffer;

pub(crate) use connection::{Accepted, Connection, Marking, Protocol, foreign, show};
pub(crate) use dial::{ask_once, share_of};
pub(crate) use discovery::{Address, Directory, Discovery};
pub(crate) use frame::{Frame, Framing, Scan};
pub(crate) use join_all::{ExchangeGroup, join_all};
pub(crate) use link::{Link, Retry};
pub(crate) use server::{Settings, Timeouts};
pub(crate) use tls::{Tls, TlsOptions};
pub(crate) use write_buffer::WriteBuffer;

/// A value of more bytes than this is neither copied into a buffer with others nor received into one.
pub(crate) const LARGE: usize = 16 << 10;
