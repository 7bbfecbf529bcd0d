//! Where a server is, and how errors speak of it.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::socket::StaleSocket;
use super::tls;
use crate::error::{Error, ErrorKind};

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port } if matches!(host.parse(), Ok(IpAddr::V6(_))) => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// An I/O error while `doing` something at `endpoint`.
pub(crate) fn io_error(doing: &str, endpoint: &Endpoint, error: io::Error) -> Error {
    if is_stale(&error) {
        return Error::with_source(ErrorKind::Forked, format!("{doing} {endpoint}"), error);
    }
    if let Some(refusal) = tls::refused(doing, endpoint, &error) {
        return refusal;
    }
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => timed_out(doing, endpoint),
        _ => Error::with_source(ErrorKind::Io, format!("{doing} {endpoint}"), error),
    }
}

/// Whether the socket is a parent process's.
pub(super) fn is_stale(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<StaleSocket>())
}

pub(crate) fn timed_out(doing: &str, endpoint: &Endpoint) -> Error {
    Error::new(ErrorKind::Timeout, format!("{doing} {endpoint}: no answer in time"))
}

#[cfg(test)]
mod tests {
    use super::Endpoint;

    #[test]
    fn an_ipv6_address_is_bracketed() {
        let shown = |host: &str| Endpoint::Tcp { host: host.to_owned(), port: 7 }.to_string();
        assert_eq!(shown("::1"), "[::1]:7");
        assert_eq!(shown("127.0.0.1"), "127.0.0.1:7");
        assert_eq!(shown("cache.example"), "cache.example:7");
    }
}
