//! TLS: a [`ByteStream`](super::stream::ByteStream) over a blocking stream or tokio's.
//!
//! The TLS configuration of a store ([`Tls`]) is read when the store is built: the root certificates, its certificate
//! and key. It is immutable, so a child uses the inherited one. Mutable state is process-local: the sessions that can
//! be resumed ([`config`]) and each connection's keys ([`stream`]). An inherited connection is not used: the socket
//! below it is cut, and its drop sends nothing.

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

/// The options for verifying servers and for authenticating this program.
#[derive(Debug, Default)]
pub(crate) struct TlsOptions {
    /// The file with the certificates of the trusted authorities, instead of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// The files of this program's certificate chain and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// The name in the server's certificate, if it is not the host.
    pub(crate) server_name: Option<String>,
    pub(crate) accept_any_certificate: bool,
    /// Whether the server does not process decrypted bytes after a value until more bytes arrive.
    pub(crate) forgets_the_rest: bool,
}
