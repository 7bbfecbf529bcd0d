//! The basis of all other promises: each process builds its own value, and never waits for a build in its parent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use prefork_cache::lifecycle::ProcessLocal;

use crate::harness::{Scenario, scenario};
use support::forks::{Way, fork_by};
use support::wait::Latch;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("a_process_local_under_construction_is_not_waited_for", under_construction),
        scenario("a_process_local_is_built_once_in_each_process", built_once_in_each_process),
        scenario("an_inherited_process_local_is_not_dropped", inherited_is_not_dropped),
    ]
}

/// Another thread is in the middle of the build at the fork. The child builds its own value.
fn under_construction() {
    static LOCAL: ProcessLocal<&str> = ProcessLocal::new();
    let (started, release) = (Latch::new(), Latch::new());
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            *LOCAL.get_or_init(|| {
                started.raise();
                release.wait("the builder is released");
                "the parent's"
            })
        });
        started.wait("the build has begun");
        for way in Way::COMMON {
            let in_child = fork_by(way, || (*LOCAL.get_or_init(|| "the child's")).to_owned());
            assert_eq!(in_child.join(), "the child's", "{way:?}");
        }
        release.raise();
        assert_eq!(builder.join().expect("no panic"), "the parent's");
    });
    assert_eq!(*LOCAL.get_or_init(|| "too late"), "the parent's");
}

fn built_once_in_each_process() {
    static BUILDS: AtomicUsize = AtomicUsize::new(0);
    let local = ProcessLocal::new();
    let build = || BUILDS.fetch_add(1, Ordering::SeqCst) + 1;
    assert_eq!(*local.get_or_init(build), 1);
    for way in Way::COMMON {
        let in_child = fork_by(way, || {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| *local.get_or_init(build))).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<usize>>()
            })
        });
        assert_eq!(in_child.join(), [2; 8], "{way:?}: one build for all threads");
        assert_eq!(*local.get_or_init(build), 1, "the parent keeps its own");
    }
}

fn inherited_is_not_dropped() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPS.fetch_add(1, Ordering::SeqCst);
        }
    }
    for way in Way::COMMON {
        let local = ProcessLocal::new();
        local.get_or_init(|| Counted);
        // The child has its own copy of the whole value, and can drop it.
        let copy = std::ptr::from_ref(&local);
        let drops = fork_by(way, || {
            // SAFETY: the child never returns to the owner of `local`, so this is its only drop.
            let inherited = unsafe { std::ptr::read(copy) };
            drop(inherited);
            let unused = DROPS.load(Ordering::SeqCst);
            // SAFETY: dropping an inherited value is documented to leave all of it as it was.
            let inherited = unsafe { std::ptr::read(copy) };
            inherited.get_or_init(|| Counted);
            drop(inherited);
            (unused, DROPS.load(Ordering::SeqCst))
        });
        let (unused, used) = drops.join();
        assert_eq!(unused, 0, "{way:?}: the child does not drop the parent's value");
        assert_eq!(used, 1, "{way:?}: the child drops its own value");
        let before = DROPS.load(Ordering::SeqCst);
        drop(local);
        assert_eq!(DROPS.load(Ordering::SeqCst), before + 1, "the parent drops its own");
        DROPS.store(0, Ordering::SeqCst);
    }
}
