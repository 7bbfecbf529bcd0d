//! Memory: a child inherits it warm where that is safe, and starts cold where it is not. It never hangs, never leaks, and no
//! inherited value is wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use prefork_cache::lifecycle::{self, Refresh};
use prefork_cache::stores::MemoryStore;
use prefork_cache::Cache;

use crate::callers::{HOUR, MINUTE};
use crate::harness::{Scenario, count, scenario};
use support::descriptors::resident_kilobytes;
use support::forks::{CHILD_TIME, Way, fork, try_fork_by};
use support::wait::{Latch, SetOnDrop, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("warm_under_1_busy_thread", || under_busy_threads(1)),
        scenario("warm_under_4_busy_threads", || under_busy_threads(4)),
        scenario("warm_under_16_busy_threads", || under_busy_threads(16)),
        scenario("warm_when_several_threads_fork_at_once", several_threads_fork_at_once),
        scenario("right_and_without_a_leak_beside_a_foreign_pin", beside_a_foreign_pin),
        scenario("cold_in_a_child_if_that_is_wanted", cold_if_wanted),
    ]
}

const CAPACITY: u64 = 4_000;
/// Set before the forks, and never again.
const STEADY: usize = 100;
/// What the busy threads write and delete: together with the steady ones they fit.
const BUSY: usize = 2_000;

/// What a child found: why it is cold, unless it is warm; and by how many kilobytes a lot of writing made it grow.
type Found = (Option<String>, Option<u64>);

fn under_busy_threads(threads: usize) {
    let cache = cache();
    let forks = count(500, 10_000);
    let cold = while_busy(&cache, threads, |busy| fork_often(&cache, busy, forks));
    println!("{threads} busy threads: of {forks} children these were cold: {cold:?}");
    let cold: usize = cold.values().sum();
    // Of many threads on few cores, the one that is inside may not run for longer than a fork waits.
    let tolerated = if threads > 4 { forks / 10 } else { forks / 100 };
    assert!(cold <= tolerated, "{cold} of {forks} children were cold");
}

/// One thread's fork is over while another's is not: its handler must not let anybody in too early.
fn several_threads_fork_at_once() {
    const FORKERS: usize = 4;
    let cache = cache();
    let forks = count(60, 2_000);
    let cold: usize = while_busy(&cache, 2, |busy| {
        thread::scope(|scope| {
            busy.start();
            let fork_often = |_| {
                let look = || try_fork_by(Way::Fork, CHILD_TIME, || look(&cache, false)).expect("a child").join();
                (0..forks).filter(|_| look().0.is_some()).count()
            };
            let forkers: Vec<_> = (0..FORKERS).map(|forker| scope.spawn(move || fork_often(forker))).collect();
            forkers.into_iter().map(|forker| forker.join().expect("no panic")).sum()
        })
    });
    println!("{FORKERS} threads forking at once: of {} children {cold} were cold", FORKERS * forks);
    assert!(cold * 100 <= FORKERS * forks, "{cold} of {} children were cold", FORKERS * forks);
}

/// Another user of moka's collector is pinned at the fork: the inherited collector will never run again.
fn beside_a_foreign_pin() {
    let cache = cache();
    let (pinned, done) = (Latch::new(), AtomicBool::new(false));
    let forks = count(200, 2_000);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _guard = crossbeam_epoch::pin();
            pinned.raise();
            while !done.load(Ordering::Relaxed) {
                thread::park_timeout(Duration::from_millis(1));
            }
        });
        let _done = SetOnDrop(&done);
        pinned.wait("the other thread is pinned");
        let cold = while_busy(&cache, 2, |busy| fork_often(&cache, busy, forks));
        println!("beside a foreign pin: of {forks} children these were cold: {cold:?}");
    });
}

fn cold_if_wanted() {
    let store = MemoryStore::builder().max_entries(CAPACITY).at_fork(prefork_cache::stores::AtFork::Fresh).build();
    let cache = Cache::register(store);
    cache.blocking().set("key", &"the parent's", MINUTE).expect("memory does not fail");
    let in_child = fork(|| {
        let inherited: Option<String> = cache.blocking().get("key").expect("memory does not fail");
        cache.blocking().set("key", &"the child's", MINUTE).expect("memory does not fail");
        (inherited, cache.blocking().get::<String>("key").expect("memory does not fail"), why_cold().is_some())
    });
    assert_eq!(in_child.join(), (None, Some("the child's".to_owned()), true));
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

/// Forks this often, each time in the middle of what the busy threads do, and counts the reasons of cold children.
fn fork_often(cache: &Cache, busy: &Busy, forks: usize) -> BTreeMap<String, usize> {
    let mut cold = BTreeMap::new();
    for number in 0..forks {
        busy.start();
        let child = try_fork_by(Way::Fork, CHILD_TIME * 3, || look(cache, number % 100 == 99)).expect("a child");
        busy.pause();
        let (reason, grown) = child.join();
        if let Some(kilobytes) = grown {
            assert!(kilobytes < 16 * 1024, "a child ({reason:?}) grew by {kilobytes} kB over a full store");
        }
        if let Some(reason) = reason {
            *cold.entry(reason).or_default() += 1;
        }
    }
    cold
}

/// In the child.
fn look(cache: &Cache, write_a_lot: bool) -> Found {
    let cold = why_cold();
    let warm = cold.is_none();
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
    (cold, write_a_lot.then(|| growth(cache)))
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

fn why_cold() -> Option<String> {
    let report = lifecycle::after_fork();
    match report.stores()[0].outcome().expect("memory does not fail") {
        Refresh::Warm => None,
        Refresh::Cold { reason } => Some((*reason).to_owned()),
        other => panic!("memory came as {other}"),
    }
}

/// Threads that read, write and delete. They are paused while a child looks, which would not get far beside them.
#[derive(Default)]
struct Busy {
    is_paused: AtomicBool,
    rounds: AtomicUsize,
}

impl Busy {
    /// Waits until they are in the middle of it.
    fn start(&self) {
        self.is_paused.store(false, Ordering::SeqCst);
        let before = self.rounds.load(Ordering::SeqCst);
        until("the threads are busy", || self.rounds.load(Ordering::SeqCst) > before + 50);
    }

    fn pause(&self) {
        self.is_paused.store(true, Ordering::SeqCst);
    }
}

fn while_busy<R>(cache: &Cache, threads: usize, work: impl FnOnce(&Busy) -> R) -> R {
    let (busy, done) = (Busy::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        for thread in 0..threads {
            let (busy, done) = (&busy, &done);
            scope.spawn(move || {
                let mut rounds = (thread..).step_by(threads);
                while !done.load(Ordering::Relaxed) {
                    if busy.is_paused.load(Ordering::Relaxed) {
                        thread::park_timeout(Duration::from_millis(1));
                        continue;
                    }
                    churn(cache, rounds.next().expect("there is no last number"));
                    busy.rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _done = SetOnDrop(&done);
        work(&busy)
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
