//! Every socket of this crate: dialled, owned and closed here, so that a child can cut the ones it inherited.
//!
//! From the top down: a [`Link`] is the way to one [`Server`](server::Server) over one protocol. Callers that block take
//! a connection out of its [`Pool`](pool::Pool), callers inside a tokio runtime share a [`pipeline`]; a
//! [`Breaker`](breaker::Breaker) keeps a server that is down from being dialled on every call, and a
//! [`Trial`](trial::Trial) keeps callers from dialling it all at once. Either way a [`Connection`] writes what is
//! [`Outgoing`] and cuts [`Frame`]s off a [`ByteStream`](stream::ByteStream), which is a [`Socket`](socket::Socket)
//! with a deadline, entered in the ledger before it exists, or [`tls`] over one. In a [`Company`], exchanges over
//! several links run at the same time.

mod breaker;
mod clock;
mod company;
mod connection;
mod dial;
mod frame;
mod io_errors;
mod link;
mod lookup;
mod outgoing;
#[cfg(feature = "tokio")]
mod pipeline;
mod pool;
mod server;
mod socket;
mod stream;
mod tls;
#[cfg(feature = "tokio")]
mod tokio_stream;
mod trial;
mod turn;

pub(crate) use company::{Company, together};
pub(crate) use connection::{Accepted, Connection, Marking, Protocol, foreign, show};
pub(crate) use dial::{ask_once, share_of};
pub(crate) use frame::{Frame, Framing, Scan};
pub(crate) use link::{Link, Retry};
pub(crate) use lookup::{Address, Directory, Lookup};
pub(crate) use outgoing::Outgoing;
pub(crate) use server::{Settings, Timeouts};
pub(crate) use tls::{Tls, TlsOptions};

/// A value of more bytes than this is neither copied into a buffer with others nor received into one.
pub(crate) const LARGE: usize = 16 << 10;
