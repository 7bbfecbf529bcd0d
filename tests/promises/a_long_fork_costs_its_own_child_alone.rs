//! Memory, after a fork that took longer than a thread waits for one: the next fork is waited for again.

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
    vec![scenario("however_late_a_thread_finds_it_long", however_late_a_thread_finds_it_long)]
}

/// What a thread is here for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    None,
    /// Finds the first fork long, and says so when it is over.
    FindsItLong,
    /// Comes during the second one.
    Waits,
}

thread_local! {
    static PART: Cell<Part> = const { Cell::new(Part::None) };
}

/// How many forks have begun, and how many are over. One has begun once the gate is closed.
static BEGUN: AtomicUsize = AtomicUsize::new(0);
static OVER: AtomicUsize = AtomicUsize::new(0);

static FOUND_IT_LONG: AtomicBool = AtomicBool::new(false);
/// How often the second thread has looked at a closed gate, and whether it then went through.
static LOOKED: AtomicUsize = AtomicUsize::new(0);
static WENT_THROUGH: AtomicBool = AtomicBool::new(false);

fn however_late_a_thread_finds_it_long() {
    // Registered before those of the crate: this one is called on a closed gate.
    // SAFETY: the handler stays as long as the process, and calls what may be called.
    unsafe { libc::pthread_atfork(Some(prepare), None, None) };
    let cache = Cache::register(MemoryStore::new());
    cache.blocking().set("key", &"value", MINUTE).expect("memory does not fail");
    injection::on_reach(observe);
    fork_beside(&cache, Part::FindsItLong);
    let warm = fork_beside(&cache, Part::Waits);
    assert!(!WENT_THROUGH.load(Ordering::SeqCst), "a thread did not wait for a fork that had just begun");
    assert!(warm, "so its child is cold");
}

/// Forks while another thread wants to enter, and answers whether the child is warm.
fn fork_beside(cache: &Cache, part: Part) -> bool {
    let begun = BEGUN.load(Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(move || {
            PART.set(part);
            until("a fork has begun", || BEGUN.load(Ordering::SeqCst) > begun);
            let found: Option<String> = cache.blocking().get("key").expect("memory does not fail");
            assert_eq!(found.as_deref(), Some("value"));
        });
        let child = fork(|| {
            let report = lifecycle::after_fork();
            matches!(report.stores()[0].outcome(), Ok(Refresh::Warm))
        });
        OVER.fetch_add(1, Ordering::SeqCst);
        child.join()
    })
}

extern "C" fn prepare() {
    let nth = BEGUN.fetch_add(1, Ordering::SeqCst);
    let what = "the other thread has seen that the gate is closed";
    match nth {
        0 => until(what, || FOUND_IT_LONG.load(Ordering::SeqCst)),
        _ => until(what, || LOOKED.load(Ordering::SeqCst) > 3 || WENT_THROUGH.load(Ordering::SeqCst)),
    }
}

fn observe(name: &'static str) {
    match (PART.get(), name) {
        (Part::FindsItLong, "overdue gate") => {
            FOUND_IT_LONG.store(true, Ordering::SeqCst);
            until("the first fork is over", || OVER.load(Ordering::SeqCst) == 1);
        }
        (Part::Waits, "closed gate") => _ = LOOKED.fetch_add(1, Ordering::SeqCst),
        (Part::Waits, "gate") if OVER.load(Ordering::SeqCst) == 1 && LOOKED.load(Ordering::SeqCst) <= 3 => {
            WENT_THROUGH.store(true, Ordering::SeqCst);
            until("the second fork is over", || OVER.load(Ordering::SeqCst) == 2);
        }
        _ => {}
    }
}
