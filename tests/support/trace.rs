//! The system calls of a piece of work, recorded by a tracer.

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork, getppid};

use super::forks::{CHILD_TIME, exit_now};

/// The exit status of a child that may not be traced.
const NOT_PERMITTED: i32 = 77;

/// Returns the numbers of the system calls that `work` makes, in a child and after `prepare`. An error if tracing is
/// not permitted.
pub fn system_calls(prepare: impl FnOnce(), work: impl FnOnce()) -> nix::Result<Vec<u64>> {
    // SAFETY: a scenario that traces has a single thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => follow(child),
        ForkResult::Child => {
            alarm::set(u32::try_from(CHILD_TIME.as_secs()).expect("a short time"));
            prepare();
            if ptrace::traceme().is_err() {
                exit_now(NOT_PERMITTED);
            }
            raise(Signal::SIGSTOP).expect("a process may stop itself");
            // The tracer records the calls between these two.
            getppid();
            work();
            getppid();
            exit_now(0)
        }
    }
}

fn follow(child: Pid) -> nix::Result<Vec<u64>> {
    let mut calls = Vec::new();
    let mut is_between_marks = false;
    loop {
        match waitpid(child, None)? {
            WaitStatus::Stopped(_, Signal::SIGSTOP) => {
                ptrace::setoptions(child, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL)?;
            }
            WaitStatus::PtraceSyscall(_) => match entered(child)? {
                Some(mark) if mark == libc::SYS_getppid.cast_unsigned() => is_between_marks = !is_between_marks,
                Some(call) if is_between_marks => calls.push(call),
                _ => {}
            },
            WaitStatus::Exited(_, 0) => return Ok(calls),
            WaitStatus::Exited(_, NOT_PERMITTED) => return Err(Errno::EPERM),
            ended => panic!("the traced child ended with {ended:?}"),
        }
        ptrace::syscall(child, None)?;
    }
}

/// The number of the system call that the child is entering, if it has stopped at an entry.
fn entered(child: Pid) -> nix::Result<Option<u64>> {
    let stop = ptrace::syscall_info(child)?;
    if stop.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    // SAFETY: the kernel has filled in this field, because the stop is an entry.
    Ok(Some(unsafe { stop.u.entry.nr }))
}
