//! Promise 3, where the fork interrupts a thread of this crate: a signal handler forks, and its child returns to the
//! interrupted code.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork as raw_fork};
use prefork_cache::lifecycle::{self, HookId};
use prefork_cache::stores::MemoryStore;
use prefork_cache::{Cache, injection};

use crate::callers::current_thread_runtime;
use crate::harness::{Scenario, count, scenario};
use support::forks::{CHILD_TIME, Side, Way, exit_now, split};
use support::signals::{interrupt_every, on_interrupt};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("while_the_current_runtime_changes", || while_the_current_runtime_changes(SaFlags::empty())),
        scenario("while_the_current_runtime_changes::without_blocking_the_signal", || {
            while_the_current_runtime_changes(SaFlags::SA_NODEFER);
        }),
        scenario("while_a_hook_is_registered", while_a_hook_is_registered),
    ]
}

static FORKED: AtomicUsize = AtomicUsize::new(0);
static PANICKED: AtomicUsize = AtomicUsize::new(0);

/// This thread does little else than change which runtime is current.
fn while_the_current_runtime_changes(flags: SaFlags) {
    extern "C" fn fork_and_wait(_: libc::c_int) {
        // SAFETY: this is the only thread, and the interrupted code does not allocate.
        match unsafe { raw_fork() }.expect("a child") {
            ForkResult::Child => exit_now(0),
            ForkResult::Parent { child } => {
                let ended = loop {
                    match waitpid(child, None) {
                        // Interrupted by another signal, if it is not blocked.
                        Err(Errno::EINTR) => {}
                        ended => break ended,
                    }
                };
                assert_eq!(ended, Ok(WaitStatus::Exited(child, 0)));
                FORKED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    let _cache = Cache::register(MemoryStore::new());
    let runtime = current_thread_runtime();
    // Does the allocations of a thread's first use.
    drop(runtime.enter());
    std::panic::set_hook(Box::new(|_| _ = PANICKED.fetch_add(1, Ordering::Relaxed)));
    let action = SigAction::new(SigHandler::Handler(fork_and_wait), flags, SigSet::empty());
    // SAFETY: see the handler.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("a handler can be installed");
    let timer = interrupt_every(Duration::from_millis(3));
    let forks = count(500, 10_000);
    while FORKED.load(Ordering::Relaxed) < forks {
        drop(runtime.enter());
    }
    drop(timer);
    let panicked = PANICKED.load(Ordering::Relaxed);
    println!("{forks} forks in a handler, {panicked} caught panics");
    // Where the crate knows that it is in a handler, it does not try, so nothing panics.
    assert!(panicked == 0 || flags.contains(SaFlags::SA_NODEFER), "{panicked} panics in a handler");
}

thread_local! {
    static IS_TO_FORK: Cell<bool> = const { Cell::new(false) };
}

static SIDE: Mutex<Option<Side<bool>>> = Mutex::new(None);
static REGISTERED_BY_THE_CHILD: Mutex<Option<HookId>> = Mutex::new(None);

/// A handler forks between the copy of the list of hooks and its replacement. The child registers a hook in the handler
/// and returns.
fn while_a_hook_is_registered() {
    on_interrupt(|| {
        let side = split(Way::Fork, CHILD_TIME).expect("a child");
        if matches!(side, Side::Child(_)) {
            *REGISTERED_BY_THE_CHILD.lock().expect("no panic") = Some(lifecycle::on_after_fork(|| {}));
        }
        *SIDE.lock().expect("no panic") = Some(side);
    });
    injection::on_reach(|name| {
        if name == "copied registry" && IS_TO_FORK.take() {
            raise(Signal::SIGUSR1).expect("this thread can be interrupted");
        }
    });
    let before = lifecycle::on_after_fork(|| {});
    IS_TO_FORK.set(true);
    let own = lifecycle::on_after_fork(|| {});
    let side = SIDE.lock().expect("no panic").take();
    let remove_both = || [before, own].map(lifecycle::remove_hook);
    match side.expect("the handler has run") {
        Side::Parent(child) => {
            assert!(child.join(), "the child's hook is found");
            assert_eq!(remove_both(), [true, true], "the parent's hooks are found");
        }
        Side::Child(reporter) => reporter.run_and_exit(|| {
            let child_hook = REGISTERED_BY_THE_CHILD.lock().expect("no panic").take();
            assert_eq!(remove_both(), [true, true], "the hooks from before the fork are found");
            lifecycle::remove_hook(child_hook.expect("the handler has registered it"))
        }),
    }
}
