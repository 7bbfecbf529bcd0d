//! Bounded waits that name what they wait for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, write};

/// A generous limit: a machine that needs longer is broken.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Waits until `condition` holds. Panics with `what` it was waiting for after [`PATIENCE`].
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(PATIENCE, what, condition);
}

/// Like [`until`], with another limit.
pub fn until_within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a descriptor is readable or closed at the other end, and returns which are: none, after `patience`.
pub fn readable<const N: usize>(descriptors: [BorrowedFd<'_>; N], patience: Duration) -> [bool; N] {
    let deadline = Instant::now() + patience;
    loop {
        let mut polled = descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        let remaining = deadline.saturating_duration_since(Instant::now());
        match poll(&mut polled, PollTimeout::try_from(remaining).expect("a wait of less than a day")) {
            Err(Errno::EINTR) => {}
            Err(error) => panic!("poll: {error}"),
            Ok(_) => return polled.map(|polled| polled.any().unwrap_or(false)),
        }
    }
}

/// Once raised, it stays raised for all threads and for all processes forked from its creator.
#[derive(Debug)]
pub struct Latch {
    read: OwnedFd,
    write: OwnedFd,
}

impl Default for Latch {
    fn default() -> Latch {
        Latch::new()
    }
}

impl Latch {
    pub fn new() -> Latch {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        Latch { read, write }
    }

    pub fn raise(&self) {
        write(&self.write, &[1]).expect("room in a pipe");
    }

    pub fn is_raised(&self) -> bool {
        readable([self.read.as_fd()], Duration::ZERO) == [true]
    }

    /// Waits until it is raised. Panics with `what` it was waiting for after [`PATIENCE`].
    pub fn wait(&self, what: &str) {
        // The byte stays in the pipe for other waiters.
        assert!(readable([self.read.as_fd()], PATIENCE) == [true], "timed out waiting until {what}");
    }
}

/// Sets a flag that ends threads, even if the code that waits for them panics.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
