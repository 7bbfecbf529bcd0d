//! A read that begins after a delete has returned sees no value that was loaded before the delete, by any process.

use std::convert::Infallible;
use std::thread;
use std::time::Duration;

use prefork_cache::{Cache, Expiry};

use crate::callers::{HOUR, PATIENT, builder_on};
use crate::harness::{Scenario, count, with_each_server};
use support::forks::{Child, Way, try_fork_by};
use support::servers::{Kind, Server};
use support::tally::Tally;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = with_each_server("beside_fetches", |kind| delete_beside(kind, fetch));
    all.extend(with_each_server("beside_batch_fetches", |kind| delete_beside(kind, fetch_many)));
    all
}

const PROCESSES: usize = 4;
const THREADS: usize = 2;
const KEYS: [&str; 3] = ["a", "b", "c"];

/// Refresh-ahead starts after a millisecond. The value is stale after an hour.
fn ahead() -> Expiry {
    Expiry::after(HOUR).refresh_ahead(HOUR - Duration::from_millis(1)).stale_for(HOUR)
}

/// Fetches a key. The loader returns the current version of the source.
type FetchFn = fn(&Cache, &str, Tally);

fn fetch(cache: &Cache, key: &str, source: Tally) {
    let Ok(_) = cache.blocking().fetch(key, ahead(), || Ok::<usize, Infallible>(slow_load(source)));
}

fn fetch_many(cache: &Cache, _key: &str, source: Tally) {
    let load = |missing: &[&str]| missing.iter().map(|_| Ok::<usize, Infallible>(slow_load(source))).collect();
    cache.blocking().fetch_many(&KEYS, ahead(), load);
}

/// Reads the source and yields, so that it may change before the load ends.
fn slow_load(source: Tally) -> usize {
    let read = source.count();
    thread::yield_now();
    read
}

fn delete_beside(kind: Kind, fetch: FetchFn) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).load_timeout(HOUR).register();
    let (source, violations, deletes) = (Tally::new(), Tally::new(), Tally::new());
    source.raise(1);
    // The version of the source at the last delete of each key, for each worker.
    let last_deletes = [(); PROCESSES * THREADS].map(|()| KEYS.map(|_| Tally::new()));
    let work = |process: usize| {
        thread::scope(|scope| {
            for worker in 0..THREADS {
                let (cache, last_deletes) = (&cache, &last_deletes[process * THREADS + worker]);
                scope.spawn(move || {
                    for round in 0..count(300, 2_000) {
                        let index = (round + worker) % KEYS.len();
                        let key = KEYS[index];
                        fetch(cache, key, source);
                        if round % 3 == worker {
                            let now = source.raise(1) + 1;
                            cache.blocking().delete(key).expect("the server is running");
                            deletes.raise(1);
                            last_deletes[index].raise(now - last_deletes[index].count());
                            let read = cache.blocking().get::<usize>(key).expect("the server is running");
                            violations.raise(usize::from(read.is_some_and(|read| read < now)));
                        }
                        if round % 7 == 0 {
                            cache.blocking().expire(key).expect("the server is running");
                        }
                    }
                });
            }
        });
    };
    let child = |process| try_fork_by(Way::Fork, Duration::from_secs(1_000), || work(process)).expect("a child");
    let children: Vec<Child<()>> = (0..PROCESSES).map(child).collect();
    children.into_iter().for_each(Child::join);
    for (index, key) in KEYS.into_iter().enumerate() {
        let deleted_at = last_deletes.iter().map(|by_worker| by_worker[index].count()).max().unwrap_or_default();
        let remaining = cache.blocking().get::<usize>(key).expect("the server is running");
        assert!(
            remaining.is_none_or(|read| read >= deleted_at),
            "{key} ends as {remaining:?}, deleted at {deleted_at}"
        );
    }
    println!("{kind:?}: {} deletes, {} old values read after a delete", deletes.count(), violations.count());
    assert_eq!(violations.count(), 0, "old values read after a delete");
}
