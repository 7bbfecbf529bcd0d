//! Memory that a master has frozen is allocated once, however many workers read it.

use std::sync::Arc;

use prefork_cache::Cache;
use prefork_cache::stores::{AtFork, MemoryStore};

use crate::callers::HOUR;
use crate::harness::{Scenario, count, scenario};
use support::forks::{CHILD_TIME, Way, fork, try_fork_by};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("by_workers_that_read_everything", by_workers_that_read_everything),
        scenario("and_changed_by_each_process_independently", changed_independently),
        scenario("but_not_by_a_child_that_starts_fresh", not_by_a_fresh_child),
    ]
}

const WORKERS: usize = 8;

fn by_workers_that_read_everything() {
    let entries = count(50_000, 1_000_000);
    let empty = private_memory(&cache().1, 0);
    let (store, cache) = cache();
    for number in 0..entries {
        cache.blocking().set_raw(&key(number), vec![b'x'; 100], HOUR).expect("memory does not fail");
    }
    let ordinary = private_memory(&cache, entries).saturating_sub(empty);
    assert!(store.freeze());
    let frozen = private_memory(&cache, entries).saturating_sub(empty);
    let copies = u64::try_from(WORKERS * entries * 100 / 1024).expect("a number of kilobytes");
    println!(
        "{entries} entries, {WORKERS} workers: {ordinary} kB private, frozen {frozen} kB; the copies: {copies} kB"
    );
    assert!(frozen < copies / 10, "frozen entries are copied: {frozen} kB of {copies} kB");
}

/// Returns the private memory of all workers together, in kilobytes, after each has read everything twice.
fn private_memory(cache: &Cache, entries: usize) -> u64 {
    let read_everything = || {
        for number in (0..entries).chain(0..entries) {
            assert!(
                cache.blocking().get_raw(&key(number)).expect("memory does not fail").is_some(),
                "a miss: {number}"
            );
        }
        private_kilobytes()
    };
    let workers: Vec<_> =
        (0..WORKERS).map(|_| try_fork_by(Way::Fork, CHILD_TIME * 20, read_everything).expect("a child")).collect();
    workers.into_iter().map(|worker| worker.join()).sum()
}

fn private_kilobytes() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("/proc is mounted");
    let private =
        rollup.lines().filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"));
    private.map(|line| line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number")).sum()
}

fn changed_independently() {
    let (store, cache) = cache();
    for number in 0..100 {
        cache.blocking().set_raw(&key(number), "the master's", HOUR).expect("memory does not fail");
    }
    assert!(store.freeze());
    cache.blocking().set_raw(&key(0), "written before the fork", HOUR).expect("memory does not fail");
    cache.blocking().delete(&key(1)).expect("memory does not fail");
    let in_child = fork(|| {
        let read = |number| cache.blocking().get_raw(&key(number)).expect("memory does not fail");
        assert_eq!(read(0).as_deref(), Some(&b"written before the fork"[..]));
        assert_eq!(read(1), None);
        cache.blocking().set_raw(&key(2), "the child's", HOUR).expect("memory does not fail");
        assert!(cache.blocking().delete(&key(3)).expect("memory does not fail"));
        let in_grandchild = fork(|| {
            let read = |number| cache.blocking().get_raw(&key(number)).expect("memory does not fail");
            (read(2).is_some_and(|value| value == "the child's"), read(3).is_none(), read(4).is_some())
        });
        (read(2).is_some_and(|value| value == "the child's"), read(3).is_none(), in_grandchild.join())
    });
    assert_eq!(in_child.join(), (true, true, (true, true, true)));
    for number in 2..100 {
        let found = cache.blocking().get_raw(&key(number)).expect("memory does not fail");
        assert_eq!(found.as_deref(), Some(&b"the master's"[..]), "a child has changed {number}");
    }
}

fn not_by_a_fresh_child() {
    let store = Arc::new(MemoryStore::builder().at_fork(AtFork::Fresh).build());
    let cache = Cache::register(Arc::clone(&store));
    cache.blocking().set_raw(&key(0), "the master's", HOUR).expect("memory does not fail");
    assert!(store.freeze());
    let in_child = fork(|| (cache.blocking().exists(&key(0)).expect("memory does not fail"), store.usage().frozen));
    assert_eq!(in_child.join(), (false, 0));
    assert!(cache.blocking().exists(&key(0)).expect("memory does not fail"));
}

fn cache() -> (Arc<MemoryStore>, Cache) {
    let store = Arc::new(MemoryStore::builder().max_bytes(1 << 30).build());
    (Arc::clone(&store), Cache::builder(store).register())
}

fn key(number: usize) -> String {
    format!("widget:{number}")
}
