//! Promise 3, where the thread that vanishes is half there: a signal handler forks, and its child comes back to what was
//! interrupted.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork as bare_fork};
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
        scenario("while_the_current_runtime_changes::without_blocking_their_signal", || {
            while_the_current_runtime_changes(SaFlags::SA_NODEFER);
        }),
        scenario("while_a_hook_is_registered", while_a_hook_is_registered),
    ]
}

static FORKED: AtomicUsize = AtomicUsize::new(0);
static PANICKED: AtomicUsize = AtomicUsize::new(0);

/// Nearly all that this thread does is to change which runtime is current.
fn while_the_current_runtime_changes(flags: SaFlags) {
    extern "C" fn fork_and_wait(_: libc::c_int) {
        // SAFETY: the only thread; what was interrupted does not allocate.
        match unsafe { bare_fork() }.expect("a child") {
            ForkResult::Child => exit_now(0),
            ForkResult::Parent { child } => {
                let ended = loop {
                    match waitpid(child, None) {
                        // By another of its kind, if that is not blocked.
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
    // What is allocated at the first use of a thread is allocated.
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
    println!("{forks} forks in a handler, {panicked} panics that were caught");
    // Where it is known to be one, nothing is tried.
    assert!(panicked == 0 || flags.contains(SaFlags::SA_NODEFER), "{panicked} panics in a handler");
}

thread_local! {
    static IS_TO_FORK: Cell<bool> = const { Cell::new(false) };
}

static SIDE: Mutex<Option<Side<bool>>> = Mutex::new(None);
static REGISTERED_BY_THE_CHILD: Mutex<Option<HookId>> = Mutex::new(None);

/// Between the copy of the list and its replacement a handler forks; the child registers a hook of its own there, and comes
/// back.
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
    let found = || [before, own].map(lifecycle::remove_hook);
    match side.expect("the handler has run") {
        Side::Parent(child) => {
            assert!(child.join(), "a hook of the child's was lost");
            assert_eq!(found(), [true, true], "hooks of the parent's");
        }
        Side::Child(reporter) => reporter.run_and_exit(|| {
            let of_the_child = REGISTERED_BY_THE_CHILD.lock().expect("no panic").take();
            assert_eq!(found(), [true, true], "hooks of before the fork");
            lifecycle::remove_hook(of_the_child.expect("the handler has registered it"))
        }),
    }
}
