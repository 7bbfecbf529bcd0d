//! Surviving a fork: which process this is, values that each process builds for itself, hooks, and the refresh of every
//! registered store.
//!
//! Nothing here has to be called. A process that was forked notices it at its first look at anything in this crate,
//! cuts the sockets that it inherited, and dials its own. [`after_fork`] makes that happen now, runs the hooks and says
//! what was done.
//!
//! ```
//! use prefork_cache::lifecycle;
//!
//! let hook = lifecycle::on_after_fork(|| println!("a worker was born"));
//! let report = lifecycle::after_fork();
//! assert!(!report.forked(), "this process was not forked, so nothing was done");
//! lifecycle::remove_hook(hook);
//! ```
//!
//! # In a shared object
//!
//! A host may unload its modules and load them again, as Apache does at each graceful restart. A shared object that this crate
//! is linked into stays from the first use of anything here on, with its statics, its connections and its fork handlers: the
//! host gets the same one back. So register a cache only where [`Cache::named`](crate::Cache::named) does not know it, and
//! restart the host for a new version under the same path.
//!
//! # What is not ours to solve
//!
//! A process that forks while other threads run inherits the locks of the C library, of its allocator and of OpenSSL as
//! they are. Two things make trouble most often:
//!
//! - `parking_lot`, which keeps pointers to vanished threads in a global table; tokio's feature `parking_lot` (part of
//!   `full`) brings it in. Leave that feature off in a program that forks with threads running.
//! - A tokio runtime of the parent's. Build a new one in the child; forget the old one (`std::mem::forget`), since
//!   dropping a multi-thread runtime there waits for threads that do not exist.
//!
//! Where a host has closed the descriptors 0, 1 or 2, nothing of this crate gets their numbers. A tokio runtime that is
//! built then does (an epoll instance, an event descriptor), as do the resolver's sockets for as long as a lookup takes; what
//! the host prints goes there. Open `/dev/null` in place of what is closed, as daemons do.

#![expect(unsafe_code, reason = "the ground floor: system calls, and pointers that outlive a fork")]

mod append_only;
mod atfork;
pub(crate) mod gate;
mod generation;
mod history;
#[cfg(feature = "__injection")]
pub mod injection;
mod leaked;
pub(crate) mod ledger;
mod pin;
mod process_bound;
mod process_local;
mod process_slot;
mod refresh;
mod registry;
mod report;
#[cfg(feature = "tokio")]
pub(crate) mod runtime;
mod tombstone;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use append_only::AppendOnly;
pub use generation::generation;
pub(crate) use history::History;
pub(crate) use leaked::Leaked;
pub(crate) use process_bound::ProcessBound;
pub use process_local::ProcessLocal;
pub(crate) use process_slot::ProcessSlot;
pub use refresh::Refresh;
pub(crate) use refresh::Registration;
pub(crate) use registry::Registry;
pub use report::{FailedHook, Report, StoreReport};

/// The generation in which this crate was first used: not known to be a forked one.
pub(crate) const FIRST_GENERATION: u64 = 1;

static HOOKS: Registry<Hook> = Registry::new();
static NEXT_HOOK: AtomicU64 = AtomicU64::new(1);

/// The generation that has run its hooks.
static HOOKS_RUN_IN: AtomicU64 = AtomicU64::new(FIRST_GENERATION);

struct Hook {
    id: HookId,
    run: Box<dyn Fn() + Send + Sync>,
}

/// Names a hook, to remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HookId(u64);

/// Brings this process up to date after a fork, now rather than at first use.
///
/// For the hook that a preforking host offers: `after_worker_fork`, `on_worker_boot`, `post_fork`. In a process that
/// was forked, every registered store that has not been refreshed yet is, and then the hooks of [`on_after_fork`] run,
/// once per process. Nothing is dialled. In any other process nothing happens. Calling it late, often or never leaves
/// the caches working alike; only the hooks run nowhere else.
///
/// ```
/// use prefork_cache::lifecycle;
///
/// let report = lifecycle::after_fork();
/// println!("{report}");
/// assert_eq!(report.generation(), lifecycle::generation());
/// ```
pub fn after_fork() -> Report {
    let generation = generation();
    let mut report = Report::new(generation);
    if generation == FIRST_GENERATION {
        return report;
    }
    report.sockets_cut = sockets_cut();
    report.stores = refresh::refresh_all();
    let ran_in = HOOKS_RUN_IN.fetch_max(generation, Ordering::AcqRel);
    if ran_in < generation {
        for hook in HOOKS.snapshot() {
            match catch_unwind(AssertUnwindSafe(|| (hook.run)())) {
                Ok(()) => report.hooks_run += 1,
                Err(panic) => {
                    report.failed_hooks.push(FailedHook { id: hook.id, message: panic_message(&*panic) });
                }
            }
        }
    }
    report
}

/// How many sockets this process has inherited and cut.
pub(crate) fn sockets_cut() -> usize {
    ledger::cut_count()
}

/// Has `hook` run by [`after_fork`], in each process that was forked, after the stores are refreshed.
///
/// Hooks run in the order of their registration, on the thread that calls `after_fork`, and only there. A hook that
/// panics is reported as failed and stops no other. What is registered in a parent holds in all of its children.
///
/// ```
/// use prefork_cache::lifecycle;
///
/// let hook = lifecycle::on_after_fork(|| eprintln!("generation {}", lifecycle::generation()));
/// assert!(lifecycle::remove_hook(hook));
/// ```
pub fn on_after_fork(hook: impl Fn() + Send + Sync + 'static) -> HookId {
    let id = HookId(NEXT_HOOK.fetch_add(1, Ordering::Relaxed));
    HOOKS.insert(Arc::new(Hook { id, run: Box::new(hook) }));
    id
}

/// Removes a hook, in this process. Answers whether it was there.
///
/// ```
/// use prefork_cache::lifecycle;
///
/// let hook = lifecycle::on_after_fork(|| {});
/// assert!(lifecycle::remove_hook(hook));
/// assert!(!lifecycle::remove_hook(hook));
/// ```
pub fn remove_hook(id: HookId) -> bool {
    HOOKS.remove(|hook| hook.id == id)
}

/// A number that this thread has to itself, also in a child: no other thread of the same process has it at the same
/// time.
pub(crate) fn thread_token() -> usize {
    thread_local! {
        static MARK: u8 = const { 0 };
    }
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

/// Which of at most 32 stripes this thread uses of something that many threads count in.
#[inline]
pub(crate) fn thread_stripe() -> usize {
    // Thread-local storage is laid out at large powers of two: mix before reducing.
    let mixed = (thread_token() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 59) as usize
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".to_owned())
}
