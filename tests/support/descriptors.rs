//! The open descriptors of a process, as the kernel reports them.

use std::net::SocketAddrV4;
use std::os::fd::{BorrowedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockaddrIn, getpeername, getsockname};
use nix::sys::stat::fstat;

/// A connected TCP socket of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    pub descriptor: RawFd,
    pub inode: u64,
    pub local_port: u16,
}

/// This process's sockets that are connected to `port`, opened by it or inherited.
pub fn connected_to(port: u16) -> Vec<Connected> {
    let connected = |descriptor| {
        let peer: SocketAddrV4 = getpeername::<SockaddrIn>(descriptor).ok()?.into();
        let own: SocketAddrV4 = getsockname::<SockaddrIn>(descriptor).ok()?.into();
        let inode = inode(descriptor)?;
        (peer.port() == port).then_some(Connected { descriptor, inode, local_port: own.port() })
    };
    open().into_iter().filter_map(connected).collect()
}

/// The inodes of [`connected_to`], sorted.
pub fn inodes_connected_to(port: u16) -> Vec<u64> {
    let mut inodes: Vec<u64> = connected_to(port).iter().map(|connected| connected.inode).collect();
    inodes.sort_unstable();
    inodes
}

/// The inode that a descriptor refers to; `None` if it is not open.
/// Async-signal-safe.
pub fn inode(descriptor: RawFd) -> Option<u64> {
    // SAFETY: only queries a number, which need not be open, and keeps nothing.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    fstat(borrowed).ok().map(|status| status.st_ino)
}

/// Returns whether a descriptor is open and is an [`O_PATH`](OFlag::O_PATH) descriptor.
pub fn is_path(descriptor: RawFd) -> bool {
    // SAFETY: as in `inode`.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    fcntl(borrowed, FcntlArg::F_GETFL).is_ok_and(|flags| OFlag::from_bits_retain(flags).contains(OFlag::O_PATH))
}

/// All descriptors of this process.
pub fn open() -> Vec<RawFd> {
    let listed = std::fs::read_dir("/proc/self/fd").expect("/proc is mounted");
    listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The number of threads of this process.
pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("/proc is mounted").count()
}
