//! What is put in the place of an inherited socket.
//!
//! An `O_PATH` descriptor of `/dev/null`: of nothing that a worker in a jail must not see, opened in advance, since the jail
//! may have no `/dev`. A host that closes all descriptors takes it too, and its number may be the host's log by then, so it
//! is looked at before each use, and reopened. Where that fails an epoll instance serves: it refuses reads and writes
//! alike, but cannot be told from one of the host's, so it is never closed. Where no tombstone can be had or put, the socket is
//! closed; every use is checked against the generation anyway. None has the number of a standard stream.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::libc;

/// Kept open; negative where there is none.
static KEPT: AtomicI32 = AtomicI32::new(-1);

pub(super) const FIRST_ABOVE_STANDARD: RawFd = libc::STDERR_FILENO + 1;

/// The device that `/dev/null` is, on every Linux.
const NULL_MAJOR: u32 = 1;
const NULL_MINOR: u32 = 3;

/// Opens the tombstone in advance.
pub(super) fn prepare() {
    let descriptor = open_null();
    let taken = KEPT.compare_exchange(-1, descriptor, Ordering::Release, Ordering::Relaxed);
    if taken.is_err() && descriptor >= 0 {
        // SAFETY: opened above, and used by nobody else: another thread was first.
        unsafe { libc::close(descriptor) };
    }
}

/// One that is at hand.
pub(super) struct Tombstone {
    descriptor: RawFd,
    borrowed: bool,
}

impl Tombstone {
    pub(super) fn raise() -> Tombstone {
        let kept = KEPT.load(Ordering::Acquire);
        if is_tombstone(kept) {
            return Tombstone { descriptor: kept, borrowed: true };
        }
        let mut descriptor = open_null();
        if descriptor < 0 {
            // SAFETY: makes a descriptor, or does not.
            descriptor = above_standard(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) });
        }
        Tombstone { descriptor, borrowed: false }
    }

    /// Answers whether it is there now; if not, the number is free, or somebody else's.
    pub(super) fn put_over(&self, descriptor: RawFd) -> bool {
        while !is_standard(descriptor) {
            // SAFETY: plain system calls on a descriptor that was just found to be a socket of ours.
            let replaced = unsafe { libc::dup3(self.descriptor, descriptor, libc::O_CLOEXEC) };
            match last_error() {
                _ if replaced >= 0 => return true,
                libc::EINTR => {}
                // Another thread is opening something under this number: the socket is gone from it.
                libc::EBUSY => return false,
                _ => break,
            }
        }
        // SAFETY: as above.
        unsafe { libc::close(descriptor) };
        false
    }

    pub(super) fn lower(self) {
        if !self.borrowed && self.descriptor >= 0 {
            // SAFETY: opened by `raise`, and used by nobody else.
            unsafe { libc::close(self.descriptor) };
        }
    }
}

/// Closes what was put over a descriptor in an earlier generation, if it is still there.
pub(super) fn remove(descriptor: RawFd) {
    // Where the host had closed the kept one, a socket may have got its number.
    if is_tombstone(descriptor) && descriptor != KEPT.load(Ordering::Relaxed) {
        // SAFETY: a tombstone, of ours or of somebody who looks before each use as well. No caller means its number.
        unsafe { libc::close(descriptor) };
    }
}

fn open_null() -> RawFd {
    // SAFETY: opens a path, or does not.
    above_standard(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })
}

/// The same under a number that no standard stream has; negative where there is none. Takes the descriptor over.
fn above_standard(opened: RawFd) -> RawFd {
    if !is_standard(opened) {
        return opened;
    }
    // SAFETY: duplicates and closes a descriptor that is the caller's alone.
    unsafe {
        let higher = libc::fcntl(opened, libc::F_DUPFD_CLOEXEC, FIRST_ABOVE_STANDARD);
        libc::close(opened);
        higher
    }
}

/// Whether this is a standard stream's number.
pub(super) fn is_standard(descriptor: RawFd) -> bool {
    (0..FIRST_ABOVE_STANDARD).contains(&descriptor)
}

fn is_tombstone(descriptor: RawFd) -> bool {
    // SAFETY: asks about a descriptor that may not exist, and then gets an error.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
    let is_null = |status: libc::stat| {
        status.st_mode & libc::S_IFMT == libc::S_IFCHR && status.st_rdev == libc::makedev(NULL_MAJOR, NULL_MINOR)
    };
    flags >= 0 && flags & libc::O_PATH != 0 && status(descriptor).is_ok_and(is_null)
}

/// What a descriptor stands for. Async-signal-safe.
pub(super) fn status(descriptor: RawFd) -> io::Result<libc::stat> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: writes the structure if the descriptor exists; read only then.
    unsafe {
        if libc::fstat(descriptor, status.as_mut_ptr()) != 0 {
            return Err(io::Error::from_raw_os_error(last_error()));
        }
        Ok(status.assume_init())
    }
}

fn last_error() -> i32 {
    // SAFETY: the address of this thread's own error number.
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
    fn a_cut_socket_is_gone_for_its_peer_and_refuses_everything() {
        let (mut cut, mut peer) = UnixStream::pair().unwrap();
        let tombstone = Tombstone::raise();
        assert!(tombstone.put_over(cut.as_raw_fd()));
        tombstone.lower();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the end");
        assert_eq!(cut.write(b"x").unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(cut.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn a_socket_is_closed_where_no_tombstone_can_be_put() {
        let (cut, mut peer) = UnixStream::pair().unwrap();
        assert!(!Tombstone { descriptor: -1, borrowed: false }.put_over(cut.into_raw_fd()));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the end");
    }

    #[test]
    fn only_a_path_to_the_null_device_is_a_tombstone() {
        let path_to = |path: &str| OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap();
        assert!(is_tombstone(path_to("/dev/null").as_raw_fd()));
        assert!(!is_tombstone(path_to("/").as_raw_fd()), "a way out of a jail");
        assert!(!is_tombstone(path_to("/dev/zero").as_raw_fd()));
        assert!(!is_tombstone(File::open("/dev/null").unwrap().as_raw_fd()), "the host's own");
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
