//! Where a server is, and how errors speak of it.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use nix::errno::Errno;

use super::socket::StaleSocket;
use super::tls;
use crate::error::{Error, ErrorKind};

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
    /// Of this name, and nobody has said yet where that is.
    Named(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port } if matches!(host.parse(), Ok(IpAddr::V6(_))) => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
            Endpoint::Named(name) => f.write_str(name),
        }
    }
}

/// Of an exchange that broke: it was not possible to `do_what`, as in "send to".
pub(crate) fn io_error(do_what: &str, endpoint: &Endpoint, error: io::Error) -> Error {
    not_possible(do_what, endpoint, error, ErrorKind::Io)
}

/// Of a connection that could not be made.
pub(super) fn dial_error(endpoint: &Endpoint, error: io::Error) -> Error {
    not_possible("connect to", endpoint, error, ErrorKind::Connect)
}

fn not_possible(do_what: &str, endpoint: &Endpoint, error: io::Error, otherwise: ErrorKind) -> Error {
    if let Some(refusal) = tls::refused(do_what, endpoint, &error) {
        return refusal;
    }
    let kind = match error.kind() {
        _ if is_stale(&error) => ErrorKind::Forked,
        _ if is_shortage(&error) => ErrorKind::OutOfResources,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => return timed_out(do_what, endpoint),
        _ => otherwise,
    };
    Error::with_source(kind, format!("could not {do_what} {endpoint}"), error)
}

pub(crate) fn timed_out(do_what: &str, endpoint: &Endpoint) -> Error {
    Error::new(ErrorKind::Timeout, format!("could not {do_what} {endpoint} in time"))
}

/// Whether the socket is a parent process's.
pub(super) fn is_stale(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<StaleSocket>())
}

/// Whether it is this machine that has run out of something: descriptors, memory, or ports.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    use Errno::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC};
    let errno = error.raw_os_error().map(Errno::from_raw);
    // ENOSPC is what an epoll instance says that may watch no more.
    matches!(errno, Some(EMFILE | ENFILE | ENOBUFS | ENOMEM | ENOSPC | EADDRNOTAVAIL))
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
