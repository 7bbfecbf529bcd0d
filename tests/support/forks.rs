//! Forked children: forked in every way, limited by a watchdog, and reaped.
//!
//! A child runs a closure, sends its result over a pipe as JSON, and ends with `_exit`. A panic counts as a result. An
//! alarm ends a child that hangs, and its parent's wait has its own deadline.

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

/// The default time limit of a child.
pub const CHILD_TIME: Duration = Duration::from_secs(30);

/// How long the parent waits for a child after the child's alarm.
const GRACE: Duration = Duration::from_secs(5);

/// How a child is forked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `fork()`: the handlers of `pthread_atfork` run.
    Fork,
    /// `_Fork()`: the handlers do not run.
    UnderscoreFork,
    /// The system call, without the C library.
    RawClone,
    /// The system call, with a new user and process id namespace: the child's process id is 1.
    NewNamespace,
}

impl Way {
    /// The ways that need no permission.
    pub const COMMON: [Way; 3] = [Way::Fork, Way::UnderscoreFork, Way::RawClone];

    /// Forks. Returns 0 in the child, which has only the forking thread and is restricted accordingly.
    fn go(self) -> nix::Result<libc::pid_t> {
        unsafe extern "C" {
            fn _Fork() -> libc::pid_t;
        }
        // SAFETY: each call makes a child that shares no memory with this process. The caller is responsible for what
        // runs in it: libc's locks may be held there if other threads were inside libc, and the tests make sure that
        // they are not.
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

/// The raw system call.
///
/// # Safety
///
/// Like `fork`, and the C library does not know of the child.
unsafe fn clone(flags: libc::c_int) -> libc::pid_t {
    // SAFETY: without CLONE_VM and without a stack, the child continues with a copy of this process. The remaining
    // arguments differ in order between architectures, and are all zero.
    let made = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    libc::pid_t::try_from(made).expect("a process id")
}

/// A forked child, running or ended.
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
    /// It returned a result.
    Returned(T),
    /// It panicked with this message.
    Panicked(String),
    /// It ended without a result, with this exit status.
    Exited(i32),
    Killed(Signal),
    /// It was still running when its time was up.
    Hung,
}

/// The message over the pipe.
#[derive(Serialize, Deserialize)]
enum Message<T> {
    Returned(T),
    Panicked(String),
}

/// Forks, and runs `work` in the child.
pub fn fork<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> T) -> Child<T> {
    fork_by(Way::Fork, work)
}

/// Forks in the given way, and runs `work` in the child.
pub fn fork_by<T: Serialize + DeserializeOwned>(way: Way, work: impl FnOnce() -> T) -> Child<T> {
    try_fork_by(way, CHILD_TIME, work).unwrap_or_else(|error| panic!("{way:?}: {error}"))
}

/// Forks in the given way, if that is permitted, and runs `work` in the child for at most `time`.
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

/// The process after [`split`].
#[derive(Debug)]
pub enum Side<T> {
    Parent(Child<T>),
    Child(Reporter<T>),
}

/// Sends the result of a child.
#[derive(Debug)]
pub struct Reporter<T> {
    pipe: OwnedFd,
    result: PhantomData<T>,
}

/// Forks and returns in both processes, in the child for at most `time`: for code in whose middle a fork happens. The
/// child has to end with [`Reporter::run_and_exit`].
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
        let bytes = serde_json::to_vec(&message).expect("results are plain data");
        let mut pipe = std::fs::File::from(self.pipe);
        let length = u64::try_from(bytes.len()).expect("a short message");
        // If the parent is gone, the result is lost.
        let _ = pipe.write_all(&length.to_ne_bytes()).and_then(|()| pipe.write_all(&bytes));
        exit_now(0)
    }
}

/// Ends this process without running the exit handlers that its parent registered.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

impl<T: Serialize + DeserializeOwned> Child<T> {
    pub fn process(&self) -> Pid {
        self.process
    }

    /// Waits for the child and returns its result. Panics if the child ended in any other way.
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

    /// Waits until the child has ended in any way, and reaps it.
    pub fn end(self) -> End<T> {
        let patience = self.time + GRACE;
        // A sibling may hold the write end of the pipe, so its end does not mean that the child has ended. The pidfd
        // does.
        let [has_message, has_ended] = readable([self.results.as_fd(), self.watch.as_fd()], patience);
        let message = if has_message { self.message() } else { None };
        let hung = match message {
            Some(_) => readable([self.watch.as_fd()], GRACE) == [false],
            None => !(has_message || has_ended),
        };
        if hung {
            kill(self.process, Signal::SIGKILL).expect("the child can be killed");
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

    /// Reads the whole message; `None` if the child ended before it was sent.
    fn message(&self) -> Option<Message<T>> {
        let mut pipe = std::fs::File::from(self.results.try_clone().expect("a free descriptor"));
        let mut length = [0; 8];
        pipe.read_exact(&mut length).ok()?;
        let mut text = vec![0; usize::try_from(u64::from_ne_bytes(length)).expect("a short message")];
        pipe.read_exact(&mut text).ok()?;
        Some(serde_json::from_slice(&text).expect("results are plain data"))
    }
}

/// Waits for a child that has ended or was killed, without a limit.
fn wait_for(process: Pid) -> WaitStatus {
    loop {
        match waitpid(process, None) {
            Err(Errno::EINTR) => {}
            other => return other.expect("the child can be waited for"),
        }
    }
}

/// A descriptor that is readable once the process has ended.
fn watch(process: libc::pid_t) -> OwnedFd {
    // SAFETY: makes a descriptor for a child that has not been reaped.
    let watch = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) }).expect("pidfd_open");
    // SAFETY: opened above, and owned by nothing else.
    above_standard(unsafe { OwnedFd::from_raw_fd(watch.try_into().expect("a descriptor")) })
}

/// Moves a descriptor above the standard streams: a test may have closed those.
fn above_standard(descriptor: OwnedFd) -> OwnedFd {
    if descriptor.as_raw_fd() > libc::STDERR_FILENO {
        return descriptor;
    }
    // The duplicate of a standard stream is above all three.
    descriptor.try_clone().expect("a free descriptor")
}

/// The message of a panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
