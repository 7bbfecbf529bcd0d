//! Detection of inherited tokio runtimes.
//!
//! A child that uses a runtime of its parent registers its sockets with the parent's epoll instance: the child hangs,
//! and the parent's own connections break. A runtime does not record when it was built. So each asynchronous operation
//! stamps its runtime's id with the generation, and the *prepare* handler stamps the current runtime of the forking
//! thread. An id that was stamped in an earlier generation is an inherited runtime. Ids come from a counter that a
//! child inherits, so the child's own runtimes have other ids.
//!
//! The stamps are in a fixed table of atomics; the oldest is overwritten first. Each thread also keeps the last id that
//! it found valid, and its generation, so a forking thread's own runtime is recognised even if its stamp was
//! overwritten. A runtime that was never used here, and was not current at the fork, cannot be distinguished from a new
//! one.
//!
//! A signal handler that forks may have interrupted tokio while it changes the current runtime; reading that would then
//! panic. Or it may have interrupted the allocator, which the first read on a thread calls. So nothing is stamped while
//! a signal that has a handler is blocked: the handler may be running. A handler that does not block its own signal
//! (`SA_NODEFER`) is not recognised; there the panic is caught.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::mem::MaybeUninit;
use std::panic::catch_unwind;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nix::libc;
use tokio::runtime::Handle;

use super::generation::generation;

const STAMPS: usize = 256;

struct Stamp {
    runtime: AtomicU64,
    generation: AtomicU64,
}

static TABLE: [Stamp; STAMPS] = [const { Stamp { runtime: AtomicU64::new(0), generation: AtomicU64::new(0) } }; STAMPS];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The last runtime found to be this process's own, and the generation.
    static LAST: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    /// Whether this thread is stamping, so that a fork in the panic that it catches does not panic again.
    static STAMPING: Cell<bool> = const { Cell::new(false) };
}

/// The number of a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RuntimeId(u64);

impl RuntimeId {
    fn of(handle: &Handle) -> RuntimeId {
        let mut number = Number(0);
        handle.id().hash(&mut number);
        RuntimeId(number.0)
    }
}

/// Returns the runtime of this thread, if any.
///
/// # Errors
///
/// If the runtime was inherited through a fork.
pub(crate) fn current() -> Result<Option<RuntimeId>, Inherited> {
    let Ok(handle) = Handle::try_current() else { return Ok(None) };
    let runtime = RuntimeId::of(&handle);
    check(runtime, generation())?;
    Ok(Some(runtime))
}

#[inline]
fn check(runtime: RuntimeId, generation: u64) -> Result<(), Inherited> {
    let (last, seen_in) = LAST.get();
    if last == runtime.0 {
        return if seen_in == generation { Ok(()) } else { Err(Inherited) };
    }
    stamp(runtime, generation)?;
    LAST.set((runtime.0, generation));
    Ok(())
}

/// The runtime belongs to a parent process.
#[derive(Debug)]
pub(crate) struct Inherited;

/// Stamps the current runtime of this thread, before it forks.
pub(super) fn stamp_current() {
    if may_be_in_a_signal_handler() || STAMPING.replace(true) {
        return;
    }
    // An error will be reported at the first use in the child.
    let _ = catch_unwind(current);
    STAMPING.set(false);
}

/// Returns whether this thread blocks a signal that has a handler.
fn may_be_in_a_signal_handler() -> bool {
    let mut blocked = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: reads this thread's mask into the set, which is used only if the call succeeded.
    unsafe {
        let succeeded = libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), blocked.as_mut_ptr()) == 0;
        succeeded
            && (1..=libc::SIGRTMAX())
                .any(|signal| libc::sigismember(blocked.as_ptr(), signal) == 1 && is_handled(signal))
    }
}

fn is_handled(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: reads the action into the structure, which is used only if the call succeeded.
    let handler = unsafe {
        let succeeded = libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0;
        if succeeded { action.assume_init().sa_sigaction } else { libc::SIG_DFL }
    };
    handler != libc::SIG_DFL && handler != libc::SIG_IGN
}

fn stamp(runtime: RuntimeId, generation: u64) -> Result<(), Inherited> {
    for stamp in &TABLE {
        if stamp.runtime.load(Ordering::Acquire) == runtime.0 {
            let stamped = stamp.generation.load(Ordering::Relaxed);
            return if stamped == generation { Ok(()) } else { Err(Inherited) };
        }
    }
    let stamp = &TABLE[NEXT.fetch_add(1, Ordering::Relaxed) % STAMPS];
    stamp.runtime.store(0, Ordering::Relaxed);
    stamp.generation.store(generation, Ordering::Relaxed);
    stamp.runtime.store(runtime.0, Ordering::Release);
    Ok(())
}

/// Extracts the number of an id, which is visible only to a hasher or as a string.
struct Number(u64);

impl Hasher for Number {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[cfg(test)]
mod tests {
    use super::{RuntimeId, STAMPS, check, stamp};

    #[test]
    fn an_inherited_runtime_is_detected_after_many_others() {
        let first = RuntimeId(1 << 40);
        assert!(check(first, 1).is_ok());
        for other in 1..=STAMPS as u64 {
            assert!(stamp(RuntimeId((1 << 40) + other), 1).is_ok());
        }
        assert!(check(first, 2).is_err(), "the thread remembers it");
        assert!(check(RuntimeId((1 << 40) + STAMPS as u64), 2).is_err(), "the table remembers it");
        assert!(check(RuntimeId(1 << 41), 2).is_ok(), "a new one");
    }
}
