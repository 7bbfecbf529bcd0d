//! A read that begins after a delete has returned sees no value that was loaded before it, whoever was loading.

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
    let mut all = with_each_server("among_fetches", |kind| among(kind, fetch));
    all.extend(with_each_server("among_fetches_of_many", |kind| among(kind, fetch_many)));
    all
}

const PROCESSES: usize = 4;
const THREADS: usize = 2;
const KEYS: [&str; 3] = ["a", "b", "c"];

/// Due to be refreshed after a millisecond, stale after an hour.
fn ahead() -> Expiry {
    Expiry::after(HOUR).refresh_ahead(HOUR - Duration::from_millis(1)).stale_for(HOUR)
}

/// Fetches what the truth is at the moment of the load.
type Fetch = fn(&Cache, &str, Tally);

fn fetch(cache: &Cache, key: &str, truth: Tally) {
    let Ok(_) = cache.blocking().fetch(key, ahead(), || Ok::<usize, Infallible>(slowly(truth)));
}

fn fetch_many(cache: &Cache, _key: &str, truth: Tally) {
    let load = |missing: &[&str]| missing.iter().map(|_| Ok::<usize, Infallible>(slowly(truth))).collect();
    cache.blocking().fetch_many(&KEYS, ahead(), load);
}

/// The truth may change while it is on its way.
fn slowly(truth: Tally) -> usize {
    let read = truth.count();
    thread::yield_now();
    read
}

fn among(kind: Kind, fetch: Fetch) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).load_timeout(HOUR).register();
    let (truth, violations, deletes) = (Tally::new(), Tally::new(), Tally::new());
    truth.raise(1);
    // What the truth was at the last delete of each key by each worker.
    let last = [(); PROCESSES * THREADS].map(|()| KEYS.map(|_| Tally::new()));
    let work = |process: usize| {
        thread::scope(|scope| {
            for worker in 0..THREADS {
                let (cache, last) = (&cache, &last[process * THREADS + worker]);
                scope.spawn(move || {
                    for round in 0..count(300, 2_000) {
                        let place = (round + worker) % KEYS.len();
                        let key = KEYS[place];
                        fetch(cache, key, truth);
                        if round % 3 == worker {
                            let now = truth.raise(1) + 1;
                            cache.blocking().delete(key).expect("the server is there");
                            deletes.raise(1);
                            last[place].raise(now - last[place].count());
                            let read = cache.blocking().get::<usize>(key).expect("the server is there");
                            violations.raise(usize::from(read.is_some_and(|read| read < now)));
                        }
                        if round % 7 == 0 {
                            cache.blocking().expire(key).expect("the server is there");
                        }
                    }
                });
            }
        });
    };
    let child = |process| try_fork_by(Way::Fork, Duration::from_secs(1_000), || work(process)).expect("a child");
    let children: Vec<Child<()>> = (0..PROCESSES).map(child).collect();
    children.into_iter().for_each(Child::join);
    for (place, key) in KEYS.into_iter().enumerate() {
        let deleted_at = last.iter().map(|of_worker| of_worker[place].count()).max().unwrap_or_default();
        let at_rest = cache.blocking().get::<usize>(key).expect("the server is there");
        assert!(at_rest.is_none_or(|read| read >= deleted_at), "{key} is {at_rest:?} at rest, deleted at {deleted_at}");
    }
    println!("{kind:?}: {} deletes, {} old values seen after one", deletes.count(), violations.count());
    assert_eq!(violations.count(), 0, "old values seen after a delete");
}
