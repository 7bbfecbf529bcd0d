//! Memory: a child inherits it warm where that is safe, and starts cold where it is not. It never hangs, never leaks, and no
//! inherited value is wrong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use prefork_cache::lifecycle::{self, Refresh};
use prefork_cache::stores::MemoryStore;
use prefork_cache::Cache;

use crate::callers::{HOUR, MINUTE};
use crate::harness::{Scenario, count, scenario};
use support::descriptors::resident_kilobytes;
use support::forks::{CHILD_TIME, Way, fork, try_fork_by};
use support::wait::{Latch, SetOnDrop};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("warm_under_1_busy_thread", || under_busy_threads(1)),
        scenario("warm_under_4_busy_threads", || under_busy_threads(4)),
        scenario("warm_under_16_busy_threads", || under_busy_threads(16)),
        scenario("right_and_without_a_leak_beside_a_foreign_pin", beside_a_foreign_pin),
        scenario("cold_in_a_child_if_that_is_wanted", cold_if_wanted),
    ]
}

const CAPACITY: u64 = 4_000;
/// Set before the forks, and never again.
const STEADY: usize = 100;
/// What the busy threads write and delete: together with the steady ones they fit.
const BUSY: usize = 2_000;

/// What a child found.
type Found = (bool, Option<u64>);

fn under_busy_threads(threads: usize) {
    let cache = cache();
    let forks = count(500, 10_000);
    let warm = while_busy(&cache, threads, || fork_often(&cache, forks));
    println!("{threads} busy threads: {warm} of {forks} children warm");
    assert!(warm * 100 >= forks * 99, "only {warm} of {forks} children were warm");
}

/// Another user of moka's collector is pinned at the fork: the inherited collector will never run again.
fn beside_a_foreign_pin() {
    let cache = cache();
    let (pinned, done) = (Latch::new(), Latch::new());
    let forks = count(200, 2_000);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _guard = crossbeam_epoch::pin();
            pinned.raise();
            done.wait("the forks are done");
        });
        pinned.wait("the other thread is pinned");
        let warm = while_busy(&cache, 2, || fork_often(&cache, forks));
        println!("beside a foreign pin: {warm} of {forks} children warm");
        done.raise();
    });
}

fn cold_if_wanted() {
    let store = MemoryStore::builder().max_entries(CAPACITY).at_fork(prefork_cache::stores::AtFork::Fresh).build();
    let cache = Cache::register(store);
    cache.blocking().set("key", &"the parent's", MINUTE).expect("memory does not fail");
    let in_child = fork(|| {
        let inherited: Option<String> = cache.blocking().get("key").expect("memory does not fail");
        cache.blocking().set("key", &"the child's", MINUTE).expect("memory does not fail");
        (inherited, cache.blocking().get::<String>("key").expect("memory does not fail"), is_warm())
    });
    assert_eq!(in_child.join(), (None, Some("the child's".to_owned()), false));
    let kept: Option<String> = cache.blocking().get("key").expect("memory does not fail");
    assert_eq!(kept.as_deref(), Some("the parent's"));
}

fn cache() -> Cache {
    let cache = Cache::register(MemoryStore::builder().max_entries(CAPACITY).build());
    for number in 0..STEADY {
        let key = format!("steady {number}");
        cache.blocking().set(&key, &format!("{key} is right"), HOUR).expect("memory does not fail");
    }
    cache
}

/// Forks this often, and answers how many children were warm.
fn fork_often(cache: &Cache, forks: usize) -> usize {
    let mut warm = 0;
    for number in 0..forks {
        let child = try_fork_by(Way::Fork, CHILD_TIME * 3, || look(cache, number % 200 == 199)).expect("a child");
        let (is_warm, grown) = child.join();
        warm += usize::from(is_warm);
        if let Some(kilobytes) = grown {
            assert!(kilobytes < 16 * 1024, "a child (warm: {is_warm}) grew by {kilobytes} kB over a full store");
        }
    }
    warm
}

/// In the child: whether it is warm; and if asked, how many kilobytes a lot of writing made it grow by.
fn look(cache: &Cache, write_a_lot: bool) -> Found {
    let warm = is_warm();
    let blocking = cache.blocking();
    for number in 0..STEADY {
        let key = format!("steady {number}");
        let found: Option<String> = blocking.get(&key).expect("memory does not fail");
        let expected = warm.then(|| format!("{key} is right"));
        assert_eq!(found, expected, "{key}, in a child that is warm: {warm}");
    }
    for number in (0..BUSY).step_by(7) {
        let key = format!("busy {number}");
        let found: Option<String> = blocking.get(&key).expect("memory does not fail");
        assert!(found.is_none_or(|found| found.starts_with(&key)), "a value of another key");
    }
    blocking.set("own", &"the child's", MINUTE).expect("memory does not fail");
    assert_eq!(blocking.get::<String>("own").expect("memory does not fail").as_deref(), Some("the child's"));
    (warm, write_a_lot.then(|| growth(cache)))
}

/// The first writes fill the store, the others replace what is in it.
fn growth(cache: &Cache) -> u64 {
    let write = |from: usize, to: usize| {
        for number in from..to {
            cache.blocking().set(&format!("filler {number}"), &"x".repeat(200), MINUTE).expect("memory does not fail");
        }
    };
    write(0, 6_000);
    let before = resident_kilobytes();
    write(6_000, 26_000);
    resident_kilobytes().saturating_sub(before)
}

fn is_warm() -> bool {
    let report = lifecycle::after_fork();
    let outcome = report.stores()[0].outcome().expect("memory does not fail");
    assert!(matches!(outcome, Refresh::Warm | Refresh::Cold { .. }), "{report}");
    outcome == Refresh::Warm
}

/// Does `work` while threads read, write and delete.
fn while_busy<R>(cache: &Cache, threads: usize, work: impl FnOnce() -> R) -> R {
    let (begun, done) = (Latch::new(), &AtomicBool::new(false));
    thread::scope(|scope| {
        for thread in 0..threads {
            let begun = &begun;
            scope.spawn(move || {
                for round in (thread..).step_by(threads) {
                    churn(cache, round);
                    if round == 1_000 {
                        begun.raise();
                    }
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        let _done = SetOnDrop(done);
        begun.wait("the threads are busy");
        work()
    })
}

fn churn(cache: &Cache, round: usize) {
    let key = format!("busy {}", round * 31 % BUSY);
    let blocking = cache.blocking();
    match round % 4 {
        0 => blocking.set(&key, &format!("{key} in round {round}"), MINUTE).expect("memory does not fail"),
        1 => drop(blocking.delete(&key).expect("memory does not fail")),
        _ => {
            let found: Option<String> = blocking.get(&key).expect("memory does not fail");
            assert!(found.is_none_or(|found| found.starts_with(&key)), "a value of another key");
        }
    }
}
