//! TLS: one more [`ByteStream`](super::stream::ByteStream), over a blocking one or over tokio's.
//!
//! What a store knows of TLS ([`Tls`]) is read when it is built: the roots, its own certificate and key. It never
//! changes, so a child goes on with what it inherited. What changes is a process's own: the sessions that a server lets
//! resume ([`config`]), and each connection's keys ([`stream`]). An inherited session is not used: the socket below it
//! is cut, and the session's own drop says nothing on the wire.

#[cfg(feature = "tls")]
mod config;
#[cfg(feature = "tls")]
mod refusal;
#[cfg(feature = "tls")]
mod stream;

#[cfg(not(feature = "tls"))]
mod off;

use std::path::PathBuf;

#[cfg(feature = "tls")]
pub(crate) use config::Tls;
#[cfg(not(feature = "tls"))]
pub(crate) use off::Tls;
#[cfg(not(feature = "tls"))]
pub(super) use off::{refused, secure};
#[cfg(feature = "tls")]
pub(super) use refusal::refused;
#[cfg(feature = "tls")]
pub(super) use stream::secure;

/// How a server is to be recognized, and this program by it.
#[derive(Debug, Default)]
pub(crate) struct TlsOptions {
    /// The certificates of the authorities that are trusted, instead of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// This program's certificate, with those between it and the authority's, and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// What the server's certificate must be for, instead of its host.
    pub(crate) server_name: Option<String>,
    pub(crate) accept_any_certificate: bool,
    /// Whether the server forgets what it has decrypted behind a value as long as nothing more arrives.
    pub(crate) forgets_the_rest: bool,
}
