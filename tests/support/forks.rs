//! Forked children: born in every way there is, watched, heard and reaped.
//!
//! A child runs a closure, sends its result over a pipe as JSON and ends with `_exit`. A panic is a result too. An alarm ends
//! a child that hangs, and its parent's wait has a deadline of its own.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, alarm, pipe2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::wait::readable;

/// How long a child may take, unless it is told otherwise.
pub const CHILD_TIME: Duration = Duration::from_secs(30);

/// How much longer than its alarm a child is waited for.
const GRACE: Duration = Duration::from_secs(5);

/// How a child is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `fork()`: the handlers of `pthread_atfork` run.
    Fork,
    /// `_Fork()`: they do not.
    UnderscoreFork,
    /// The system call, without the C library.
    RawClone,
    /// The system call, into a user and a process id namespace of the child's own: its process id is 1.
    NewNamespace,
}

impl Way {
    /// The ways that need no permission.
    pub const COMMON: [Way; 3] = [Way::Fork, Way::UnderscoreFork, Way::RawClone];

    /// 0 in the child, which has the forking thread alone: it must do nothing but what such a child may.
    fn go(self) -> nix::Result<libc::pid_t> {
        unsafe extern "C" {
            fn _Fork() -> libc::pid_t;
        }
        // SAFETY: each makes a child that shares no memory with this process. What runs in it is a test's business: libc's
        // own locks may be held there if other threads were inside of it, and the tests see to it that they are not.
        Errno::result(unsafe {
            match self {
                Way::Fork => libc::fork(),
                Way::UnderscoreFork => _Fork(),
                Way::RawClone => clone(libc::SIGCHLD),
                Way::NewNamespace => clone(libc::SIGCHLD | libc::CLONE_NEWUSER | libc::CLONE_NEWPID),
            }
        })
    }
}

/// The bare system call.
///
/// # Safety
///
/// As `fork`, and the C library does not learn of it.
unsafe fn clone(flags: libc::c_int) -> libc::pid_t {
    // SAFETY: without CLONE_VM and with no stack given, the child goes on with a copy of this one. Both orders of the
    // remaining arguments (they differ between architectures) are all zeros.
    let made = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    libc::pid_t::try_from(made).expect("a process id")
}

/// A child that is running, or was.
#[derive(Debug)]
#[must_use = "a child has to be reaped"]
pub struct Child<T> {
    process: Pid,
    watch: OwnedFd,
    results: OwnedFd,
    time: Duration,
    result: PhantomData<T>,
}

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End<T> {
    /// With a result.
    Returned(T),
    /// With a panic of this text.
    Panicked(String),
    /// Without a word: exit status, or signal.
    Exited(i32),
    Killed(Signal),
    /// It was still running when its time was up.
    Hung,
}

/// What goes over the pipe.
#[derive(Serialize, Deserialize)]
enum Message<T> {
    Returned(T),
    Panicked(String),
}

/// Forks, and runs `work` in the child.
pub fn fork<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> T) -> Child<T> {
    fork_by(Way::Fork, work)
}

/// Forks in this way, and runs `work` in the child.
pub fn fork_by<T: Serialize + DeserializeOwned>(way: Way, work: impl FnOnce() -> T) -> Child<T> {
    try_fork_by(way, CHILD_TIME, work).unwrap_or_else(|error| panic!("{way:?}: {error}"))
}

/// Forks in this way, if it is permitted, and runs `work` in the child for at most `time`.
pub fn try_fork_by<T: Serialize + DeserializeOwned>(
    way: Way,
    time: Duration,
    work: impl FnOnce() -> T,
) -> nix::Result<Child<T>> {
    match split(way, time)? {
        Side::Parent(child) => Ok(child),
        Side::Child(reporter) => reporter.run_and_exit(work),
    }
}

/// Which process this is, after [`split`].
#[derive(Debug)]
pub enum Side<T> {
    Parent(Child<T>),
    Child(Reporter<T>),
}

/// Where a child puts its result.
#[derive(Debug)]
pub struct Reporter<T> {
    pipe: OwnedFd,
    result: PhantomData<T>,
}

/// Forks in this way and returns in both processes, in the child for at most `time`: for code in whose middle a fork
/// happens. A child has to end in [`Reporter::run_and_exit`].
pub fn split<T>(way: Way, time: Duration) -> nix::Result<Side<T>> {
    let (results, pipe) = pipe2(OFlag::O_CLOEXEC)?;
    let (results, pipe) = (above_standard(results), above_standard(pipe));
    match way.go()? {
        0 => {
            alarm::set(u32::try_from(time.as_secs()).expect("a short time").max(1));
            Ok(Side::Child(Reporter { pipe, result: PhantomData }))
        }
        process => {
            let watch = watch(process);
            Ok(Side::Parent(Child { process: Pid::from_raw(process), watch, results, time, result: PhantomData }))
        }
    }
}

impl<T: Serialize> Reporter<T> {
    /// Runs `work`, sends its result and ends this process.
    pub fn run_and_exit(self, work: impl FnOnce() -> T) -> ! {
        let message = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => Message::Returned(result),
            Err(panic) => Message::Panicked(panic_text(&*panic)),
        };
        let text = serde_json::to_vec(&message).expect("results are plain data");
        let mut pipe = std::fs::File::from(self.pipe);
        let length = u64::try_from(text.len()).expect("a short text");
        // Should the parent be gone, there is nobody to tell.
        let _ = pipe.write_all(&length.to_ne_bytes()).and_then(|()| pipe.write_all(&text));
        exit_now(0)
    }
}

/// Ends this process without running anything that its parent has registered for its end.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

impl<T: Serialize + DeserializeOwned> Child<T> {
    pub fn process(&self) -> Pid {
        self.process
    }

    /// Waits for the child and answers its result. Panics if it ended in any other way.
    pub fn join(self) -> T
    where
        T: Debug,
    {
        let process = self.process;
        match self.end() {
            End::Returned(result) => result,
            End::Panicked(text) => panic!("the child {process} panicked: {text}"),
            other => panic!("the child {process} ended badly: {other:?}"),
        }
    }

    /// Waits for the child, however it ends, and reaps it.
    pub fn end(self) -> End<T> {
        let patience = self.time + GRACE;
        // A sibling may have inherited the pipe's other end: its closing is no sign of the child's end, hence the second one.
        let [heard, ended] = readable([self.results.as_fd(), self.watch.as_fd()], patience);
        let message = if heard { self.message() } else { None };
        let hung = match message {
            Some(_) => readable([self.watch.as_fd()], GRACE) == [false],
            None => !(heard || ended),
        };
        if hung {
            kill(self.process, Signal::SIGKILL).expect("a child of ours can be killed");
        }
        let status = wait_for(self.process);
        match (message, status) {
            (Some(Message::Returned(result)), _) if !hung => End::Returned(result),
            (Some(Message::Panicked(text)), _) if !hung => End::Panicked(text),
            (_, WaitStatus::Exited(_, status)) => End::Exited(status),
            (_, WaitStatus::Signaled(_, Signal::SIGALRM, _)) => End::Hung,
            (_, WaitStatus::Signaled(..)) if hung => End::Hung,
            (_, WaitStatus::Signaled(_, signal, _)) => End::Killed(signal),
            (_, other) => panic!("the child is {other:?}"),
        }
    }

    /// The whole message, or none if the child ended before it was sent.
    fn message(&self) -> Option<Message<T>> {
        let mut pipe = std::fs::File::from(self.results.try_clone().expect("a free descriptor"));
        let mut length = [0; 8];
        pipe.read_exact(&mut length).ok()?;
        let mut text = vec![0; usize::try_from(u64::from_ne_bytes(length)).expect("a short text")];
        pipe.read_exact(&mut text).ok()?;
        Some(serde_json::from_slice(&text).expect("results are plain data"))
    }
}

/// Waits for a child to end, however long that takes: it has ended, or was killed.
fn wait_for(process: Pid) -> WaitStatus {
    loop {
        match waitpid(process, None) {
            Err(Errno::EINTR) => {}
            other => return other.expect("a child of ours can be waited for"),
        }
    }
}

/// A descriptor that is readable once the process has ended.
fn watch(process: libc::pid_t) -> OwnedFd {
    // SAFETY: makes a descriptor for a child that has not been reaped.
    let watch = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) }).expect("pidfd_open");
    // SAFETY: made above, and nobody else's.
    above_standard(unsafe { OwnedFd::from_raw_fd(watch.try_into().expect("a descriptor")) })
}

/// The same under a number that no standard stream has: a test may have closed those.
fn above_standard(descriptor: OwnedFd) -> OwnedFd {
    if descriptor.as_raw_fd() > libc::STDERR_FILENO {
        return descriptor;
    }
    // The duplicate of a standard stream is above all three.
    descriptor.try_clone().expect("a free descriptor")
}

/// What a panic says.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".to_owned())
}
