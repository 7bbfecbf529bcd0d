//! Every socket of this crate: dialled, owned and closed here, so that a child can cut the ones it inherited.
//!
//! From the bottom up: a [`Socket`](socket::Socket) is entered in the ledger before it exists and leaves it when it is
//! closed; a [`Stream`] is a connected one with a deadline, blocking or tokio's, behind one interface; a [`Pool`](pool::Pool)
//! keeps idle connections and destroys whatever comes back unfinished; a [`Breaker`](breaker::Breaker) keeps a server that is down from being
//! dialled on every call; a [`Link`] puts these together for one endpoint and one protocol; in a [`Company`],
//! exchanges over several links run at the same time.

mod breaker;
mod company;
mod dial;
mod drive;
mod endpoint;
mod link;
mod pool;
mod socket;
mod stream;
#[cfg(feature = "tokio")]
mod tokio_socket;

pub(crate) use company::{Company, together};
#[cfg(feature = "conformance")]
pub(crate) use drive::suspends;
pub(crate) use drive::{Drive, drive, inline, is_inline, lifted, pause};
pub(crate) use endpoint::{Endpoint, io_error, timed_out};
pub(crate) use link::{Link, Protocol, Retry, Settings, Timeouts};
#[cfg(feature = "tokio")]
pub(crate) use socket::Probe;
pub(crate) use stream::Stream;
#[cfg(feature = "tokio")]
pub(crate) use tokio_socket::TokioSocket;
