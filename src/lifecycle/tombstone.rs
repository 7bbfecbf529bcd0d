//! Tombstones, which replace inherited sockets.
//!
//! A tombstone is an `O_PATH` descriptor of `/dev/null`, which exposes nothing to a worker in a jail. It is opened in
//! advance, since the jail may have no `/dev`. A host that closes all descriptors closes it too, and its number may
//! then be the host's log, so it is checked before each use, and reopened. If that fails, an epoll instance is used. It
//! refuses reads and writes as well, but cannot be distinguished from one of the host's, so it is never closed. If no
//! tombstone can be opened or put, the socket is closed; every use checks the generation anyway. A tombstone never has
//! the number of a standard stream.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::libc;

/// The tombstone opened in advance; negative if there is none.
static KEPT: AtomicI32 = AtomicI32::new(-1);

pub(super) const FIRST_ABOVE_STANDARD: RawFd = libc::STDERR_FILENO + 1;

/// The device number of `/dev/null`, on every Linux.
const NULL_MAJOR: u32 = 1;
const NULL_MINOR: u32 = 3;

/// Opens the tombstone in advance.
pub(super) fn prepare() {
    let descriptor = open_null();
    let taken = KEPT.compare_exchange(-1, descriptor, Ordering::Release, Ordering::Relaxed);
    if taken.is_err() && descriptor >= 0 {
        // SAFETY: opened above, and not shared: another thread was first.
        unsafe { libc::close(descriptor) };
    }
}

/// A tombstone, ready to be put.
pub(super) struct Tombstone {
    descriptor: RawFd,
    borrowed: bool,
}

impl Tombstone {
    pub(super) fn open() -> Tombstone {
        let kept = KEPT.load(Ordering::Acquire);
        if is_tombstone(kept) {
            return Tombstone { descriptor: kept, borrowed: true };
        }
        let mut descriptor = open_null();
        if descriptor < 0 {
            // SAFETY: opens a descriptor or fails.
            descriptor = above_standard(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) });
        }
        Tombstone { descriptor, borrowed: false }
    }

    /// Replaces a socket. Returns whether the tombstone is there now; if not, the number is free or in use by another
    /// thread.
    pub(super) fn replace(&self, descriptor: RawFd) -> bool {
        while !is_standard(descriptor) {
            // SAFETY: plain system calls on a descriptor that was just found to be a socket of this crate.
            let replaced = unsafe { libc::dup3(self.descriptor, descriptor, libc::O_CLOEXEC) };
            match last_error() {
                _ if replaced >= 0 => return true,
                libc::EINTR => {}
                // Another thread is opening something under this number: the socket is no longer there.
                libc::EBUSY => return false,
                _ => break,
            }
        }
        // SAFETY: as above.
        unsafe { libc::close(descriptor) };
        false
    }

    pub(super) fn release(self) {
        if !self.borrowed && self.descriptor >= 0 {
            // SAFETY: opened by `open`, and not shared.
            unsafe { libc::close(self.descriptor) };
        }
    }
}

/// Closes a tombstone that was put in an earlier generation, if it is still there.
pub(super) fn remove(descriptor: RawFd) {
    // If the host has closed the one opened in advance, a socket may have got its number.
    if is_tombstone(descriptor) && descriptor != KEPT.load(Ordering::Relaxed) {
        // SAFETY: it is a tombstone, ours or that of another library that checks before each use too. No caller uses
        // its number.
        unsafe { libc::close(descriptor) };
    }
}

fn open_null() -> RawFd {
    // SAFETY: opens a path or fails.
    above_standard(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })
}

/// Moves a descriptor above the standard streams, and takes ownership of it. Negative if that fails.
fn above_standard(opened: RawFd) -> RawFd {
    if !is_standard(opened) {
        return opened;
    }
    // SAFETY: duplicates and closes a descriptor that only the caller owns.
    unsafe {
        let higher = libc::fcntl(opened, libc::F_DUPFD_CLOEXEC, FIRST_ABOVE_STANDARD);
        libc::close(opened);
        higher
    }
}

/// Returns whether this is the number of a standard stream.
pub(super) fn is_standard(descriptor: RawFd) -> bool {
    (0..FIRST_ABOVE_STANDARD).contains(&descriptor)
}

fn is_tombstone(descriptor: RawFd) -> bool {
    // SAFETY: reads the flags of a descriptor that may not exist, which is an error then.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
    let is_null = |status: libc::stat| {
        status.st_mode & libc::S_IFMT == libc::S_IFCHR && status.st_rdev == libc::makedev(NULL_MAJOR, NULL_MINOR)
    };
    flags >= 0 && flags & libc::O_PATH != 0 && status(descriptor).is_ok_and(is_null)
}

/// Returns the status of a descriptor. Async-signal-safe.
pub(super) fn status(descriptor: RawFd) -> io::Result<libc::stat> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: writes the structure if the descriptor exists; it is read only then.
    unsafe {
        if libc::fstat(descriptor, status.as_mut_ptr()) != 0 {
            return Err(io::Error::from_raw_os_error(last_error()));
        }
        Ok(status.assume_init())
    }
}

fn last_error() -> i32 {
    // SAFETY: the address of this thread's error number.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::{Read, Write};
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::fs::OpenOptionsExt;
    use std::os::unix::net::UnixStream;

    use super::{KEPT, Ordering, Tombstone, is_tombstone, libc, prepare};

    #[test]
    fn a_cut_socket_is_closed_for_its_peer_and_fails_reads_and_writes() {
        let (mut cut, mut peer) = UnixStream::pair().unwrap();
        let tombstone = Tombstone::open();
        assert!(tombstone.replace(cut.as_raw_fd()));
        tombstone.release();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "end of file");
        assert_eq!(cut.write(b"x").unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(cut.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn a_socket_is_closed_if_no_tombstone_can_be_put() {
        let (cut, mut peer) = UnixStream::pair().unwrap();
        assert!(!Tombstone { descriptor: -1, borrowed: false }.replace(cut.into_raw_fd()));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "end of file");
    }

    #[test]
    fn only_a_path_to_the_null_device_is_a_tombstone() {
        let path_to = |path: &str| OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap();
        assert!(is_tombstone(path_to("/dev/null").as_raw_fd()));
        assert!(!is_tombstone(path_to("/").as_raw_fd()), "a way out of a jail");
        assert!(!is_tombstone(path_to("/dev/zero").as_raw_fd()));
        assert!(!is_tombstone(File::open("/dev/null").unwrap().as_raw_fd()), "a descriptor of the host");
        assert!(!is_tombstone(-1));
    }

    #[test]
    fn the_first_tombstone_is_kept() {
        prepare();
        let kept = KEPT.load(Ordering::Acquire);
        prepare();
        assert_eq!(KEPT.load(Ordering::Acquire), kept);
        assert!(is_tombstone(kept));
    }
}
