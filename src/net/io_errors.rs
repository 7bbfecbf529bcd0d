//! Errors of the operating system, as errors about a server.

use std::io;

use nix::errno::Errno;

use super::socket::StaleSocket;
use super::tls;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind};

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
