//! Operations that are dropped while they refresh the topology, follow a redirection or wait for several nodes: the
//! store goes on working, and no connection is lost in tokio.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prefork_cache::stores::{RedisStore, from_url};
use prefork_cache::{CacheStore, Op, Resumable, Ttl};
use tokio::task::yield_now;

use super::lies::{HOUR, PATIENT};
use crate::conformance::current_thread;
use crate::failures::outside_of_a_runtime;
use support::cluster::Cluster;
use support::stress::count;
use support::wait::{PATIENCE, until};

const KEYS: usize = 30;

fn keys(name: &str) -> Vec<String> {
    (0..KEYS).map(|number| format!("{name}:{{{}}}", number % 10)).collect()
}

fn borrowed(keys: &[String]) -> Vec<&str> {
    keys.iter().map(String::as_str).collect()
}

/// Stores entries whose values are their keys.
fn fill(cluster: &Cluster, keys: &[&str]) {
    let store = from_url(&cluster.url(PATIENT)).unwrap();
    let entries: Vec<_> = keys.iter().map(|key| (*key, Bytes::from((*key).to_owned()))).collect();
    outside_of_a_runtime(store.set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
}

/// The number of operations of [`operate`].
const OPERATIONS: usize = 7;

/// Calls one of the operations. All of them leave the keys that are read unchanged.
async fn operate(store: &RedisStore, number: usize, read: &[&str], changed: &[&str]) {
    let value = || Bytes::from("changed");
    match number % OPERATIONS {
        0 => drop(store.get(read[number % KEYS]).await.unwrap()),
        1 => drop(store.get_many(read).await.into_iter().map(Result::unwrap).collect::<Vec<_>>()),
        2 => {
            let entries: Vec<_> = changed.iter().map(|key| (*key, value())).collect();
            store.set_many(&entries, HOUR).await.into_iter().for_each(|stored| stored.unwrap());
        }
        3 => {
            let change = |key| Op::CompareAndSet { key, expected: None, new: Some(value()), ttl: HOUR };
            let operations: Vec<Op<'_>> = changed.iter().map(|key| change(*key)).collect();
            store.batch(&operations).await.into_iter().for_each(|outcome| drop(outcome.unwrap()));
        }
        4 => store.clear("changed").await.unwrap(),
        5 => drop(store.touch(changed[number % KEYS], Ttl::Never).await.unwrap()),
        _ => store.reconnect().await.unwrap(),
    }
}

async fn check(store: &RedisStore, case: usize, read: &[&str]) {
    let begun = Instant::now();
    for (key, found) in read.iter().zip(store.get_many(read).await) {
        assert_eq!(found.unwrap().unwrap(), *key, "case {case}");
    }
    let key = read[case % KEYS];
    assert_eq!(store.get(key).await.unwrap().unwrap(), *key, "case {case}");
    assert!(begun.elapsed() < PATIENCE, "case {case}: waited for a query that no caller makes");
}

/// Polls a future a number of times, or for some microseconds, and drops it.
async fn drop_early(case: usize, future: impl Future) {
    if case.is_multiple_of(2) {
        let mut future = pin!(future);
        for _ in 0..case / 2 % 40 {
            if poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await {
                return;
            }
            yield_now().await;
        }
    } else {
        let time = Duration::from_micros((case * 7_919 % 2_500) as u64);
        let _ = tokio::time::timeout(time, future).await;
    }
}

#[test]
fn dropped_futures() {
    let cluster = Cluster::without_replicas();
    let (read, changed) = (keys("read"), keys("changed"));
    let (read, changed) = (borrowed(&read), borrowed(&changed));
    fill(&cluster, &read);
    let slots = ["0", "1"].map(|tag| cluster.slot(tag));
    // The first slot is moved half way, the second one from node to node.
    let mut half = cluster.start_move(slots[0], (cluster.owner_of_slot(slots[0]) + 1) % 3);
    half.migrate(&[read[0]]);
    let cases = count(700, 20_000);
    let mut kept = RedisStore::new(&cluster.url(PATIENT)).unwrap();
    for case in 0..cases {
        if case % 20 == 0 {
            cluster.move_slot(slots[1], (cluster.owner_of_slot(slots[1]) + 1) % 3);
        }
        // Every other store has no connection and no topology.
        if case % 3 == 0 {
            kept = RedisStore::new(&cluster.url(PATIENT)).unwrap();
        }
        current_thread().block_on(async {
            drop_early(case, operate(&kept, case, &read, &changed)).await;
            check(&kept, case, &read).await;
            let dials: u64 = kept.servers().iter().map(|server| server.dials).sum();
            assert!(dials <= 40, "case {case}: {dials} dials");
        });
        until("no request is left", || kept.servers().iter().all(|server| server.in_flight == 0));
    }
    half.finish();
}

/// The caller that asks for the topology is dropped while others wait for its query.
#[test]
fn a_dropped_query_is_made_by_another_caller() {
    let cluster = Cluster::without_replicas();
    for polls in 0..60 {
        let store = RedisStore::new(&cluster.url(PATIENT)).unwrap();
        current_thread().block_on(async {
            let mut asking: Vec<_> = (0..8).map(|_| Box::pin(store.get("key"))).collect();
            for _ in 0..=polls {
                poll_fn(|cx| {
                    asking.retain_mut(|asking| asking.as_mut().poll(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
                yield_now().await;
            }
            asking.drain(..asking.len().min(1));
            let begun = Instant::now();
            for asking in asking {
                assert_eq!(asking.await.unwrap(), None, "after {polls} polls");
            }
            assert!(begun.elapsed() < PATIENCE, "after {polls} polls");
        });
    }
}

#[test]
fn dropped_slices() {
    let cluster = Cluster::without_replicas();
    let (read, changed) = (keys("read"), keys("changed"));
    let (read, changed) = (borrowed(&read), borrowed(&changed));
    fill(&cluster, &read);
    let mut store = RedisStore::new(&cluster.url(PATIENT)).unwrap();
    for case in 0..count(300, 5_000) {
        if case % 3 == 0 {
            store = RedisStore::new(&cluster.url(PATIENT)).unwrap();
        }
        let mut operation = Resumable::new(operate(&store, case, &read, &changed));
        for _ in 0..case % 5 {
            if operation.run_for(Duration::from_micros((case * 7_919 % 700) as u64)).is_some() {
                break;
            }
        }
        drop(operation);
        outside_of_a_runtime(check(&store, case, &read));
        assert!(store.servers().iter().all(|server| server.in_flight == 0), "case {case}: a permit is lost");
    }
}
