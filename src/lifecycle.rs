//! Fork safety: the generation of a process, values that each process builds for itself, hooks, and the refresh of
//! every registered store.
//!
//! Nothing here has to be called. A forked process notices the fork when it first uses this crate, cuts the inherited
//! sockets, and dials its own. [`after_fork`] does so now, runs the hooks, and returns a report.
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
//! A host may unload its modules and load them again, as Apache does at each graceful restart. A shared object that
//! links this crate stays loaded from the first use of the crate on, with its statics, its connections and its fork
//! handlers. The host gets the same object back. So register a cache only if [`Cache::named`](crate::Cache::named) does
//! not find it, and restart the host to load a new version under the same path.
//!
//! # Limits
//!
//! A process that forks while other threads run inherits the locks of the C library, of its allocator and of OpenSSL in
//! whatever state they are. Two libraries cause trouble most often:
//!
//! - `parking_lot`, which keeps pointers to vanished threads in a global table. tokio's feature `parking_lot` (part of
//!   `full`) enables it. Leave that feature off in a program that forks with threads running.
//! - A tokio runtime of the parent. Build a new one in the child, and forget the old one (`std::mem::forget`): dropping
//!   a multi-thread runtime there waits for threads that do not exist.
//!
//! If a host has closed the descriptors 0, 1 or 2, this crate never uses their numbers. A tokio runtime built after
//! that does (an epoll instance, an event descriptor), and so do the resolver's sockets during a lookup. Output of the
//! host then goes there. Open `/dev/null` in place of the closed descriptors, as daemons do.

#![expect(unsafe_code, reason = "the ground floor: system calls, and pointers that outlive a fork")]

mod append_only;
mod atfork;
pub(crate) mod gate;
mod generation;
mod history;
#[cfg(feature = "__injection")]
#[doc(hidden)]
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

/// The generation in which this crate was first used. Such a process is not known to be forked.
pub(crate) const FIRST_GENERATION: u64 = 1;

static HOOKS: Registry<Hook> = Registry::new();
static NEXT_HOOK: AtomicU64 = AtomicU64::new(1);

/// The last generation that has run its hooks.
static HOOKS_RUN_IN: AtomicU64 = AtomicU64::new(FIRST_GENERATION);

struct Hook {
    id: HookId,
    run: Box<dyn Fn() + Send + Sync>,
}

/// The identifier of a hook, for its removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HookId(u64);

/// Refreshes this process after a fork, now rather than at first use.
///
/// Call it from the hook that a preforking host offers: `after_worker_fork`, `on_worker_boot`, `post_fork`. In a forked
/// process, it refreshes every registered store that has not been refreshed yet, and then runs the hooks of
/// [`on_after_fork`], once per process. It dials nothing. In any other process it does nothing.
///
/// The caches work the same if it is called late, repeatedly or never. Only the hooks depend on it.
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

/// Returns how many inherited sockets this process has cut.
pub(crate) fn sockets_cut() -> usize {
    ledger::cut_count()
}

/// Registers a hook that [`after_fork`] runs in each forked process, after the stores are refreshed.
///
/// Hooks run in the order of their registration, on the thread that calls `after_fork`, and only there. A hook that
/// panics is reported as failed, and the next ones run. Hooks registered in a parent run in all of its children.
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

/// Removes a hook in this process. Returns whether it was registered.
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

/// Returns a number that no other running thread of this process has, in a child too.
pub(crate) fn thread_token() -> usize {
    thread_local! {
        static MARK: u8 = const { 0 };
    }
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

/// Returns the stripe of this thread, below 32, for striped counters.
#[inline]
pub(crate) fn thread_stripe() -> usize {
    // Thread-local storage is aligned to large powers of two: mix the bits before reducing.
    let mixed = (thread_token() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 59) as usize
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
