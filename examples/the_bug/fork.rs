//! Runs the same work on both sides of a fork.

use std::io::{self, Read, Write, pipe};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, alarm, fork};

use crate::WATCHDOG_SECONDS;
use crate::tally::{Side, Tallies, Tally};

/// Forks, runs `work` on both sides at the same time, and returns both tallies in the parent.
pub(crate) fn both(work: impl FnOnce(Side) -> Tally) -> io::Result<Tallies> {
    let (mut from_child, mut to_parent) = pipe()?;
    // SAFETY: this process has a single thread, so the child may do everything that the parent may.
    match unsafe { fork() }? {
        ForkResult::Child => {
            alarm::set(WATCHDOG_SECONDS);
            let sent = serde_json::to_vec(&work(Side::Child)).map(|tally| to_parent.write_all(&tally));
            let status = i32::from(!matches!(sent, Ok(Ok(()))));
            // SAFETY: ends the process without the parent's exit handlers and destructors.
            unsafe { nix::libc::_exit(status) }
        }
        ForkResult::Parent { child: process } => {
            drop(to_parent);
            let parent = work(Side::Parent);
            let mut sent = Vec::new();
            from_child.read_to_end(&mut sent)?;
            match waitpid(process, None)? {
                WaitStatus::Exited(_, 0) => Ok(Tallies { parent, child: serde_json::from_slice(&sent)? }),
                other => Err(io::Error::other(format!("the child ended with {other:?}"))),
            }
        }
    }
}
