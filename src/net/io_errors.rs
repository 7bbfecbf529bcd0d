//! Turns errors of the operating system into errors about a server.

use std::io;

use nix::errno::Errno;

use super::socket::StaleSocket;
use super::tls;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind};

/// The error of a failed exchange. `do_what` is the operation, such as "send to".
pub(crate) fn io_error(do_what: &str, endpoint: &Endpoint, error: io::Error) -> Error {
    classified(do_what, endpoint, error, ErrorKind::Io)
}

/// The error of a failed dial.
pub(super) fn dial_error(endpoint: &Endpoint, error: io::Error) -> Error {
    classified("connect to", endpoint, error, ErrorKind::Connect)
}

fn classified(do_what: &str, endpoint: &Endpoint, error: io::Error, otherwise: ErrorKind) -> Error {
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

/// Returns whether the error is that of a socket that a parent process opened.
pub(super) fn is_stale(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<StaleSocket>())
}

/// Returns whether the error is a shortage on this machine: of descriptors, memory, or ports.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    use Errno::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC};
    let errno = error.raw_os_error().map(Errno::from_raw);
    // ENOSPC is the error of an epoll instance at the limit of watches (`max_user_watches`).
    matches!(errno, Some(EMFILE | ENFILE | ENOBUFS | ENOMEM | ENOSPC | EADDRNOTAVAIL))
}
