//! Memory, after a fork that took longer than a thread waits at the gate: threads wait for the next fork again.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::libc;
use prefork_cache::lifecycle::{self, Refresh};
use prefork_cache::stores::MemoryStore;
use prefork_cache::{Cache, injection};

use crate::callers::MINUTE;
use crate::harness::{Scenario, scenario};
use support::forks::fork;
use support::wait::until;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario("a_thread_reports_the_long_fork_late", a_thread_reports_the_long_fork_late)]
}

/// The role of a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    None,
    /// Exceeds its wait for the first fork, and reports that only when the fork is over.
    ReportsLongFork,
    /// Arrives at the gate during the second fork.
    Waits,
}

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::None) };
}

/// The numbers of forks that have begun and that have ended. A fork has begun once the gate is closed.
static BEGUN: AtomicUsize = AtomicUsize::new(0);
static ENDED: AtomicUsize = AtomicUsize::new(0);

static SAW_LONG_FORK: AtomicBool = AtomicBool::new(false);
/// How often the second thread has found the gate closed, and whether it then passed.
static WAITS: AtomicUsize = AtomicUsize::new(0);
static PASSED: AtomicBool = AtomicBool::new(false);

fn a_thread_reports_the_long_fork_late() {
    // Registered before the handlers of the crate, so it is called when the gate is closed.
    // SAFETY: the handler lives as long as the process, and does nothing that is forbidden before a fork.
    unsafe { libc::pthread_atfork(Some(prepare), None, None) };
    let cache = Cache::register(MemoryStore::new());
    cache.blocking().set("key", &"value", MINUTE).expect("memory does not fail");
    injection::on_reach(observe);
    fork_beside(&cache, Role::ReportsLongFork);
    let warm = fork_beside(&cache, Role::Waits);
    assert!(!PASSED.load(Ordering::SeqCst), "a thread did not wait for a fork that had just begun");
    assert!(warm, "the child is cold");
}

/// Forks while another thread wants to pass the gate. Returns whether the child is warm.
fn fork_beside(cache: &Cache, role: Role) -> bool {
    let begun = BEGUN.load(Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(move || {
            ROLE.set(role);
            until("a fork has begun", || BEGUN.load(Ordering::SeqCst) > begun);
            let found: Option<String> = cache.blocking().get("key").expect("memory does not fail");
            assert_eq!(found.as_deref(), Some("value"));
        });
        let child = fork(|| {
            let report = lifecycle::after_fork();
            matches!(report.stores()[0].outcome(), Ok(Refresh::Warm))
        });
        ENDED.fetch_add(1, Ordering::SeqCst);
        child.join()
    })
}

extern "C" fn prepare() {
    let nth = BEGUN.fetch_add(1, Ordering::SeqCst);
    let what = "the other thread finds the gate closed";
    match nth {
        0 => until(what, || SAW_LONG_FORK.load(Ordering::SeqCst)),
        _ => until(what, || WAITS.load(Ordering::SeqCst) > 3 || PASSED.load(Ordering::SeqCst)),
    }
}

fn observe(name: &'static str) {
    match (ROLE.get(), name) {
        (Role::ReportsLongFork, "overdue gate") => {
            SAW_LONG_FORK.store(true, Ordering::SeqCst);
            until("the first fork is over", || ENDED.load(Ordering::SeqCst) == 1);
        }
        (Role::Waits, "closed gate") => _ = WAITS.fetch_add(1, Ordering::SeqCst),
        (Role::Waits, "gate") if ENDED.load(Ordering::SeqCst) == 1 && WAITS.load(Ordering::SeqCst) <= 3 => {
            PASSED.store(true, Ordering::SeqCst);
            until("the second fork is over", || ENDED.load(Ordering::SeqCst) == 2);
        }
        _ => {}
    }
}
