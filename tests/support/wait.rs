//! Waiting for something, for a bounded time, and saying what it was.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, write};

/// Generous: a machine that is this busy is broken.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Waits until `condition` holds. Panics, saying `what` it was waiting for, if that takes too long.
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(PATIENCE, what, condition);
}

/// The same, for what may take longer.
pub fn until_within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until one of `descriptors` is readable or closed at the other end, and answers which are. None, after `patience`.
pub fn readable<const N: usize>(descriptors: [BorrowedFd<'_>; N], patience: Duration) -> [bool; N] {
    let deadline = Instant::now() + patience;
    loop {
        let mut looked_at = descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut looked_at, PollTimeout::try_from(left).expect("a wait of less than a day")) {
            Err(Errno::EINTR) => {}
            Err(error) => panic!("poll: {error}"),
            Ok(_) => return looked_at.map(|looked_at| looked_at.any().unwrap_or(false)),
        }
    }
}

/// Once raised it stays raised, for every thread and every process that was forked from its maker.
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

    /// Waits until it is raised. Panics, saying `what` it was waiting for, if that takes too long.
    pub fn wait(&self, what: &str) {
        // The byte is left where it is, for the others who wait.
        assert!(readable([self.read.as_fd()], PATIENCE) == [true], "waited in vain until {what}");
    }
}

/// Tells threads to end, also if whoever waits for them panics first.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
