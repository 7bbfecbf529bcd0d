//! A socket that belongs to the process that opened it.
//!
//! It is entered in the ledger before it exists, and removed when it is closed. In a process that inherited it, every
//! operation fails and the drop does nothing: its descriptor number refers to the ledger's tombstone there.

use std::fmt;
use std::io::{self, IoSlice};
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

#[cfg(feature = "tokio")]
use tokio::io::unix::AsyncFd;

use crate::lifecycle::ledger::{Entry, Use};

/// The number of keepalive probes without a response after which the kernel closes the connection.
const KEEPALIVE_PROBES: u32 = 4;

/// The kernel's limit for the keepalive time, in seconds.
const LONGEST_KEEPALIVE: u32 = 32_767;

/// A TCP or Unix socket of this process.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: ManuallyDrop<OwnedFd>,
    entry: Entry,
}

/// The error of every operation on a socket that a parent process opened.
#[derive(Debug)]
pub(crate) struct StaleSocket;

impl fmt::Display for StaleSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was opened by a parent process")
    }
}

impl std::error::Error for StaleSocket {}

/// The state of a connection attempt.
pub(crate) enum Connecting {
    Done,
    /// In progress: the socket becomes writable when the attempt succeeds or fails.
    UnderWay,
    /// The queue of the server's Unix socket is full: connect again later.
    Full,
}

impl Socket {
    /// Opens a non-blocking TCP socket, not yet connected.
    pub(crate) fn tcp(address: &SocketAddr, keepalive: Option<Duration>) -> io::Result<Socket> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = Socket::open(family)?;
        socket::setsockopt(&socket.own()?, sockopt::TcpNoDelay, &true)?;
        if let Some(idle) = keepalive {
            socket.keep_alive(idle)?;
        }
        Ok(socket)
    }

    /// Makes the kernel send keepalive probes after `idle` without traffic, and close the connection if nothing is
    /// acknowledged for twice as long.
    fn keep_alive(&self, idle: Duration) -> io::Result<()> {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).clamp(1, LONGEST_KEEPALIVE);
        let socket = &self.own()?;
        socket::setsockopt(socket, sockopt::KeepAlive, &true)?;
        socket::setsockopt(socket, sockopt::TcpKeepIdle, &seconds(idle))?;
        socket::setsockopt(socket, sockopt::TcpKeepInterval, &seconds(idle / KEEPALIVE_PROBES))?;
        socket::setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
        socket::setsockopt(socket, sockopt::TcpUserTimeout, &(2_000 * seconds(idle)))?;
        Ok(())
    }

    /// Opens a non-blocking Unix socket, not yet connected.
    pub(crate) fn unix() -> io::Result<Socket> {
        Socket::open(AddressFamily::Unix)
    }

    fn open(family: AddressFamily) -> io::Result<Socket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (descriptor, entry) = Entry::open(|| Ok(socket::socket(family, SockType::Stream, flags, None)?))?;
        Ok(Socket { descriptor: ManuallyDrop::new(descriptor), entry })
    }

    pub(crate) fn start_connecting_tcp(&self, address: &SocketAddr) -> io::Result<Connecting> {
        self.start_connecting(&SockaddrStorage::from(*address))
    }

    pub(crate) fn start_connecting_unix(&self, path: &Path) -> io::Result<Connecting> {
        self.start_connecting(&UnixAddr::new(path)?)
    }

    fn start_connecting(&self, address: &dyn SockaddrLike) -> io::Result<Connecting> {
        match socket::connect(self.own()?.as_raw_fd(), address) {
            Ok(()) | Err(Errno::EISCONN) => Ok(Connecting::Done),
            Err(Errno::EINPROGRESS | Errno::EINTR | Errno::EALREADY) => Ok(Connecting::UnderWay),
            Err(Errno::EAGAIN) => Ok(Connecting::Full),
            Err(error) => Err(error.into()),
        }
    }

    /// The result of a connection attempt that was in progress.
    pub(crate) fn connected(&self) -> io::Result<()> {
        match socket::getsockopt(&self.own()?, sockopt::SocketError)? {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits until the socket is writable. Returns `None` if it is not writable by `until`.
    pub(crate) fn wait_writable(&self, until: Instant) -> Option<io::Result<()>> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up: a wait of zero milliseconds would spin.
            let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let own = match self.own() {
                Ok(own) => own,
                Err(error) => return Some(Err(error)),
            };
            match poll(&mut [PollFd::new(own.as_fd(), PollFlags::POLLOUT)], left) {
                Ok(0) if Instant::now() >= until => return None,
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Some(Ok(())),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }

    /// Makes receiving block.
    pub(crate) fn set_blocking(&self) -> io::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(self.own()?, FcntlArg::F_GETFL)?);
        fcntl(self.own()?, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
        Ok(())
    }

    /// Sets the timeout of a blocking receive.
    pub(crate) fn set_receive_timeout(&self, timeout: Duration) -> io::Result<()> {
        Ok(socket::setsockopt(&self.own()?, sockopt::ReceiveTimeout, &time_value(timeout))?)
    }

    /// Sends as many bytes as the kernel's buffer has room for, without waiting. (The kernel's send timeout cannot be
    /// used: on a Unix socket it starts again with each part that the peer makes room for.)
    #[inline]
    pub(crate) fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match pieces {
            [piece] => Ok(socket::send(self.own()?.as_raw_fd(), piece, flags)?),
            pieces => Ok(socket::sendmsg::<()>(self.own()?.as_raw_fd(), pieces, &[], flags, None)?),
        }
    }

    #[inline]
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(socket::recv(self.own()?.as_raw_fd(), buffer, MsgFlags::empty())?)
    }

    /// Receives the bytes that have arrived, without waiting.
    pub(crate) fn receive_at_once(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(socket::recv(self.own()?.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
    }

    /// Returns whether nothing has arrived, not even the end of the stream, as expected between exchanges.
    pub(crate) fn is_quiet(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let looked = self.own().map(|own| socket::recv(own.as_raw_fd(), &mut [0], flags));
        matches!(looked, Ok(Err(Errno::EAGAIN)))
    }

    /// Registers a non-blocking socket with the current tokio runtime.
    #[cfg(feature = "tokio")]
    #[expect(unsafe_code, reason = "tokio requires that the descriptor stays the same")]
    pub(crate) fn register(self) -> io::Result<AsyncFd<Socket>> {
        let _use = self.begin_use().ok_or_else(stale)?;
        // SAFETY: `as_raw_fd` and `as_fd` return the same descriptor at every call, and only the drop closes it. In a
        // child the number refers to the ledger's tombstone, and the registration is never used again.
        Ok(unsafe { AsyncFd::register(self) }?)
    }

    /// The descriptor, for a system call by the process that opened it.
    #[inline]
    fn own(&self) -> io::Result<Own<'_>> {
        let begun = self.begin_use().ok_or_else(stale)?;
        Ok(Own { descriptor: self.descriptor.as_fd(), _use: begun })
    }

    /// Begins a use of the descriptor's number, which lasts until the returned value is dropped. Returns `None` in a
    /// process that did not open the socket.
    #[inline]
    pub(super) fn begin_use(&self) -> Option<Use> {
        self.entry.begin_use()
    }
}

fn stale() -> io::Error {
    io::Error::other(StaleSocket)
}

/// A descriptor that is in use.
struct Own<'a> {
    descriptor: BorrowedFd<'a>,
    _use: Use,
}

impl AsRawFd for Own<'_> {
    #[inline]
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl AsFd for Own<'_> {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Socket {
    #[expect(unsafe_code, reason = "the ledger, not the descriptor's own drop, decides whether it is closed")]
    fn drop(&mut self) {
        // SAFETY: the descriptor is taken once, here, and nothing uses the socket afterwards.
        let descriptor = unsafe { ManuallyDrop::take(&mut self.descriptor) };
        self.entry.close(descriptor);
    }
}

/// Converts a timeout, to at least a microsecond: to the kernel zero means no timeout.
fn time_value(timeout: Duration) -> TimeVal {
    let microseconds = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX).max(1);
    TimeVal::microseconds(microseconds)
}
