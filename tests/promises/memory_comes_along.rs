//! Memory: a child inherits the entries (warm) if that is safe, and otherwise starts empty (cold). It never hangs,
//! never leaks, and no inherited value is wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use prefork_cache::Cache;
use prefork_cache::lifecycle::{self, Refresh};
use prefork_cache::stores::MemoryStore;

use crate::callers::{HOUR, MINUTE};
use crate::harness::{Scenario, count, scenario};
use support::forks::{CHILD_TIME, Way, fork, try_fork_by};
use support::memory::resident;
use support::wait::{Latch, SetOnDrop, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("warm_under_1_busy_thread", || under_busy_threads(1)),
        scenario("warm_under_4_busy_threads", || under_busy_threads(4)),
        scenario("warm_under_16_busy_threads", || under_busy_threads(16)),
        scenario("warm_when_several_threads_fork_at_once", several_threads_fork_at_once),
        scenario("cold_and_without_a_leak_beside_a_foreign_pin", beside_a_foreign_pin),
        scenario("cold_if_the_store_is_set_to_start_fresh", cold_if_set_to_start_fresh),
        scenario("warm_behind_a_backlog_of_garbage", behind_a_backlog),
        scenario("warm_behind_a_backlog_of_garbage_of_another_library", behind_a_foreign_backlog),
        scenario("cold_later_if_a_backlog_hides_a_foreign_pin", a_backlog_hides_a_foreign_pin),
        scenario("from_a_cold_child_to_its_own_child", from_a_cold_child_to_its_child),
        scenario("without_decoded_values", without_decoded_values),
        scenario("without_counting_the_garbage_of_vanished_threads", without_the_garbage_of_vanished_threads),
    ]
}

const CAPACITY: u64 = 4_000;
/// The number of entries that are set before the forks and never changed.
const STEADY: usize = 100;
/// The number of entries that the busy threads write and delete. Together with the steady ones they fit into the store.
const BUSY: usize = 2_000;

/// The findings of a child: why it is cold, or `None` if it is warm; and the processor time of its first operation, in
/// microseconds.
type Found = (Option<String>, u64);

fn under_busy_threads(threads: usize) {
    let cache = cache();
    let forks = count(200, 10_000);
    let cold = while_busy(&cache, threads, |busy| fork_often(&cache, busy, forks, || look(&cache)));
    println!("{threads} busy threads: of {forks} children these were cold: {cold:?}");
    assert_mostly_warm(cold.values().sum(), forks);
}

/// Up to 1 % of the children may be cold, or 5 % in the short run: on a busy machine, threads may not leave the store
/// in time.
fn assert_mostly_warm(cold: usize, forks: usize) {
    let tolerated = forks / count(20, 100);
    assert!(cold <= tolerated, "{cold} of {forks} children were cold");
}

/// When one thread's fork ends while another's is in progress, its handler must not open the gate too early.
fn several_threads_fork_at_once() {
    const FORKERS: usize = 4;
    let cache = cache();
    let forks = count(60, 2_000);
    let cold = while_busy(&cache, 2, |busy| {
        thread::scope(|scope| {
            busy.start();
            let fork_often = |_| -> Vec<String> {
                let look = || try_fork_by(Way::Fork, CHILD_TIME, || look(&cache)).expect("a child").join();
                (0..forks).filter_map(|_| look().0).collect()
            };
            let forkers: Vec<_> = (0..FORKERS).map(|forker| scope.spawn(move || fork_often(forker))).collect();
            forkers.into_iter().flat_map(|forker| forker.join().expect("no panic")).collect::<Vec<String>>()
        })
    });
    println!("{FORKERS} threads forking at once: of {} children these were cold: {cold:?}", FORKERS * forks);
    assert_mostly_warm(cold.len(), FORKERS * forks);
}

/// A thread outside of moka is pinned at the fork, so the inherited collector never frees anything again. On a slow
/// machine a child may detect this only while it writes.
fn beside_a_foreign_pin() {
    let cache = cache();
    let forks = count(200, 2_000);
    beside_a_pin(|| {
        let look_until_cold = || {
            let (reason, processor_time) = look(&cache);
            (reason.or_else(|| cold_after_writes(&cache)), processor_time)
        };
        let cold = while_busy(&cache, 2, |busy| fork_often(&cache, busy, forks, look_until_cold));
        println!("beside a foreign pin: of {forks} children these were cold: {cold:?}");
        assert_eq!(cold.values().sum::<usize>(), forks, "a child trusts a collector that will never run again");
    });
}

/// Writes one key, which evicts no other, as many times as the longest examination of the collector has flushes.
fn cold_after_writes(cache: &Cache) -> Option<String> {
    let blocking = cache.blocking();
    let is_cold = (0..200_000).any(|_| {
        blocking.set("own", &"the child's", MINUTE).expect("memory does not fail");
        !blocking.exists("steady 0").expect("memory does not fail")
    });
    is_cold.then(|| "the examination ended later".to_owned())
}

/// Garbage of this store, deferred while a thread was pinned, that can be dropped by now. It is ahead of the probe's
/// marker in the queue.
fn behind_a_backlog() {
    let cache = cache_of(10_000_000);
    let guard = crossbeam_epoch::pin();
    for round in 0..count(20_000, 200_000) {
        let value = format!("steady 0 in round {round}");
        cache.blocking().set("rewritten", &value, HOUR).expect("memory does not fail");
    }
    drop(guard);
    let (reason, processor_time) = fork(|| look(&cache)).join();
    println!("behind a backlog: cold: {reason:?}, first operation {processor_time} us");
    assert_eq!(reason, None, "a backlog is taken for a dead collector");
}

fn behind_a_foreign_backlog() {
    let cache = cache();
    leave_a_backlog();
    let ((reason, processor_time), grown) = fork(|| (look(&cache), growth(&cache))).join();
    println!("behind a foreign backlog: cold: {reason:?}, grown by {grown} bytes, first operation {processor_time} us");
    assert_eq!(reason, None, "a backlog is taken for a dead collector");
    assert!(grown < 16 << 20, "{grown} bytes");
}

/// The child sees that garbage is dropped, and continues with the inherited entries. Then the collector stalls.
fn a_backlog_hides_a_foreign_pin() {
    let cache = cache();
    leave_a_backlog();
    // Now all of the backlog but the last part can be dropped.
    (0..4).for_each(|_| crossbeam_epoch::pin().flush());
    beside_a_pin(|| {
        let in_child = fork(|| {
            let (reason, _) = look(&cache);
            (reason, growth(&cache), cache.blocking().exists("steady 0").expect("memory does not fail"))
        });
        let (reason, grown, is_there) = in_child.join();
        assert_eq!(reason, None, "an undecided child is warm");
        assert!(!is_there, "the fallback replaces the inherited entries");
        assert!(grown < 16 << 20, "{grown} bytes");
    });
}

/// Defers the drop of two million objects while this thread is pinned.
fn leave_a_backlog() {
    let guard = crossbeam_epoch::pin();
    let dropped = std::sync::Arc::new(AtomicUsize::new(0));
    for _ in 0..2_000_000 {
        let dropped = std::sync::Arc::clone(&dropped);
        guard.defer(move || dropped.fetch_add(1, Ordering::Relaxed));
    }
    guard.flush();
}

/// The fallback needs no collector, so its entries are inherited.
fn from_a_cold_child_to_its_child() {
    let cache = cache();
    beside_a_pin(|| {
        let in_child = fork(|| {
            assert!(why_cold().or_else(|| cold_after_writes(&cache)).is_some());
            cache.blocking().set("key", &"the child's", MINUTE).expect("memory does not fail");
            let in_grandchild =
                fork(|| (why_cold(), cache.blocking().get::<String>("key").expect("memory does not fail")));
            in_grandchild.join()
        });
        assert_eq!(in_child.join(), (None, Some("the child's".to_owned())));
    });
}

/// A decoded value may contain a lock that a vanished thread holds, or a destructor that writes to a connection. So a
/// child neither uses nor drops inherited decoded values: it decodes the bytes again.
fn without_decoded_values() {
    let cache = cache();
    cache.blocking().set("locked", &1, HOUR).expect("memory does not fail");
    let decoded: std::sync::Arc<Locked> = shared(&cache).expect("a hit");
    let lock = |stay: &dyn Fn()| {
        let mut guard = decoded.0.lock().expect("no panic");
        *guard = 2;
        stay();
    };
    beside("the value is locked", lock, || {
        let in_child = fork(|| {
            let own = shared(&cache).expect("a hit");
            let number = *own.0.lock().expect("no panic");
            let is_kept = std::sync::Arc::ptr_eq(&own, &shared(&cache).expect("a hit"));
            drop(own);
            cache.blocking().set("locked", &3, HOUR).expect("memory does not fail");
            cache.blocking().delete("locked").expect("memory does not fail");
            growth(&cache);
            (number, is_kept, DROPPED.load(Ordering::SeqCst))
        });
        assert_eq!(in_child.join(), (1, true, 1), "the child dropped only its own value");
    });
    assert_eq!(DROPPED.load(Ordering::SeqCst), 0);
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);

struct Locked(std::sync::Mutex<u32>);

impl<'de> serde::Deserialize<'de> for Locked {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Locked, D::Error> {
        u32::deserialize(deserializer).map(|number| Locked(std::sync::Mutex::new(number)))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::SeqCst);
    }
}

fn shared(cache: &Cache) -> Option<std::sync::Arc<Locked>> {
    cache.blocking().get_shared("locked").expect("memory does not fail")
}

/// This garbage is never dropped in the child. It must not count there, or there would be no room for other entries.
fn without_the_garbage_of_vanished_threads() {
    const SIZE: usize = 100_000;
    let store = std::sync::Arc::new(MemoryStore::builder().max_bytes(100 * SIZE as u64).build());
    let cache = Cache::register(std::sync::Arc::clone(&store));
    let leave_garbage = |stay: &dyn Fn()| {
        for number in 0..90 {
            cache.blocking().set_raw(&number.to_string(), vec![1; SIZE], HOUR).expect("memory does not fail");
        }
        let guard = crossbeam_epoch::pin();
        for number in 0..40 {
            cache.blocking().delete(&number.to_string()).expect("memory does not fail");
        }
        for _ in 0..64 {
            guard.defer(|| ());
        }
        drop(guard);
        stay();
    };
    beside("the other thread has removed entries", leave_garbage, || {
        let in_child = fork(|| {
            assert_eq!(why_cold(), None);
            for number in 100..1_000 {
                cache.blocking().set_raw(&number.to_string(), vec![1; SIZE], HOUR).expect("memory does not fail");
            }
            (store.usage().held, store.usage().refused)
        });
        let (held, refused) = in_child.join();
        assert_eq!(refused, 0, "there is no room: {held} bytes count");
        assert!(held <= 100 * SIZE as u64, "{held} bytes count");
    });
}

/// Calls `work` while another thread is inside `other`, at its call of the argument, which returns after `work`.
fn beside<R>(what: &str, other: impl FnOnce(&dyn Fn()) + Send, work: impl FnOnce() -> R) -> R {
    let (arrived, done) = (Latch::new(), AtomicBool::new(false));
    thread::scope(|scope| {
        let (arrived, done) = (&arrived, &done);
        scope.spawn(move || {
            other(&|| {
                arrived.raise();
                while !done.load(Ordering::Relaxed) {
                    thread::park_timeout(Duration::from_millis(1));
                }
            });
        });
        let _done = SetOnDrop(done);
        arrived.wait(what);
        work()
    })
}

fn beside_a_pin<R>(work: impl FnOnce() -> R) -> R {
    let pin = |stay: &dyn Fn()| {
        let _guard = crossbeam_epoch::pin();
        stay();
    };
    beside("the other thread is pinned", pin, work)
}

fn cold_if_set_to_start_fresh() {
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
    cache_of(CAPACITY)
}

fn cache_of(entries: u64) -> Cache {
    let cache = Cache::register(MemoryStore::builder().max_entries(entries).build());
    for number in 0..STEADY {
        let key = format!("steady {number}");
        cache.blocking().set(&key, &format!("{key} is right"), HOUR).expect("memory does not fail");
    }
    cache
}

/// Forks `forks` times while the busy threads are at work, and counts the cold children by reason. Every hundredth
/// child writes enough to show a leak.
fn fork_often(cache: &Cache, busy: &Busy, forks: usize, look: impl Fn() -> Found) -> BTreeMap<String, usize> {
    let mut cold = BTreeMap::new();
    let mut longest = 0;
    for number in 0..forks {
        busy.start();
        let in_child = || (look(), (number % 100 == 99).then(|| growth(cache)));
        let child = try_fork_by(Way::Fork, CHILD_TIME * 3, in_child).expect("a child");
        busy.pause();
        let ((reason, processor_time), grown) = child.join();
        longest = longest.max(processor_time);
        if let Some(bytes) = grown {
            assert!(bytes < 16 << 20, "a child ({reason:?}) grew by {bytes} bytes over a full store");
        }
        if let Some(reason) = reason {
            *cold.entry(reason).or_default() += 1;
        }
    }
    println!("the longest first operation took {longest} us of its child's processor time");
    cold
}

/// Checks, in the child, that every entry is right, and returns the findings.
fn look(cache: &Cache) -> Found {
    let started = processor_time();
    let cold = why_cold();
    let first = processor_time() - started;
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
    (cold, u64::try_from(first.as_micros()).expect("a short time"))
}

/// Fills the store, then replaces its entries. Returns by how many bytes the replacing has increased the
/// resident memory.
fn growth(cache: &Cache) -> usize {
    let write = |from: usize, to: usize| {
        for number in from..to {
            cache.blocking().set(&format!("filler {number}"), &"x".repeat(200), MINUTE).expect("memory does not fail");
        }
    };
    write(0, 6_000);
    let before = resident();
    write(6_000, 26_000);
    resident().saturating_sub(before)
}

fn why_cold() -> Option<String> {
    let report = lifecycle::after_fork();
    match report.stores()[0].outcome().expect("memory does not fail") {
        Refresh::Warm => None,
        Refresh::Cold { reason } => Some((*reason).to_owned()),
        other => panic!("memory was refreshed as {other}"),
    }
}

/// Returns the processor time of this process.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("there is such a clock").into()
}

/// Threads that read, write and delete. They are paused while a child runs, which would otherwise get little processor
/// time.
#[derive(Default)]
struct Busy {
    is_paused: AtomicBool,
    rounds: AtomicUsize,
}

impl Busy {
    /// Resumes the threads, and waits until they are at work.
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
