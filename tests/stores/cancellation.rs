//! Futures that are dropped, in tokio: no reply goes to another request, no connection is lost, and a change that was
//! already sent when its future was dropped does not overtake a later change of its key. `STRESS=1` drops 100,000.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use prefork_cache::{Cache, stores};
use tokio::task::yield_now;

use crate::conformance::current_thread;
use support::proxy::Proxy;
use support::servers::{Kind, Server, url_of};
use support::stress::count;
use support::wait::PATIENCE;

const TTL: Duration = Duration::from_secs(3600);
const PATIENT: &str = "timeout=20s&connect_timeout=20s";
const TASKS: usize = 32;
const KEYS: usize = 100;
/// One request in this many is not dropped, and its reply is checked.
const CHECKED: usize = 4;
/// The most dials that are permitted.
const MOST_DIALS: usize = 9;

fn cache_at(kind: Kind, port: u16) -> Cache {
    Cache::builder(stores::from_url(&url_of(kind, port, PATIENT)).unwrap()).build()
}

#[test]
fn dropped_requests_cost_redis_no_connection() {
    dropped_requests_cost_no_connection(Kind::Redis);
}

#[test]
fn dropped_requests_cost_memcached_no_connection() {
    dropped_requests_cost_no_connection(Kind::Memcached);
}

fn dropped_requests_cost_no_connection(kind: Kind) {
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port());
    let requests = count(4_800, 100_000);
    let results = Arc::new(Mutex::new(Results::default()));
    current_thread().block_on(async {
        for number in 0..KEYS {
            cache.set_raw(&key(number), value(&key(number)), TTL).await.unwrap();
        }
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (cache, results) = (cache.clone(), Arc::clone(&results));
                tokio::spawn(async move {
                    let (mut number, mut dropped) = (task, 0);
                    while dropped < requests / TASKS {
                        dropped += usize::from(operate(&cache, number, &results).await);
                        number += TASKS;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
    });
    let results = results.lock().expect("no panic");
    let Results { dropped, ended, wrong, failed } = &*results;
    let dials = proxy.connects();
    let case = format!(
        "{kind:?}: {dropped} dropped, {ended} ended, {} wrong answers, {} failed, {dials} dials",
        wrong.len(),
        failed.len(),
    );
    println!("{case}");
    assert!(wrong.is_empty(), "{case}: {:?}", wrong.iter().take(3).collect::<Vec<_>>());
    assert!(failed.is_empty(), "{case}: {:?}", failed.iter().take(3).collect::<Vec<_>>());
    assert!(dials <= MOST_DIALS, "{case}");
}

#[derive(Debug, Default)]
struct Results {
    dropped: usize,
    /// Completed requests, whether they were meant to be dropped or not.
    ended: usize,
    wrong: Vec<String>,
    failed: Vec<String>,
}

/// Runs an operation to its end, or until it is dropped. Returns whether it was dropped.
async fn operate(cache: &Cache, number: usize, results: &Mutex<Results>) -> bool {
    let keys = [key(number), key(number * 7 + 1), key(number * 11 + 2)];
    let operation = async {
        match random(number + 7) % 5 {
            0 => cache.set_raw(&keys[0], value(&keys[0]), TTL).await.map(|()| Vec::new()),
            1 => cache.increment("counter", 1, TTL).await.map(|_| Vec::new()),
            2 => cache.get_many_raw(&keys.each_ref().map(String::as_str)).await.into_iter().collect(),
            _ => cache.get_raw(&keys[0]).await.map(|found| vec![found]),
        }
    };
    let ended = match random(number) % (2 * CHECKED) {
        0 | 1 => Some(operation.await),
        2..=4 => poll_times(operation, random(number + 1) % 3 + 1).await,
        _ => tokio::time::timeout(Duration::from_micros((random(number + 2) % 1_000) as u64), operation).await.ok(),
    };
    let is_dropped = ended.is_none();
    let mut results = results.lock().expect("no panic");
    match ended {
        None => results.dropped += 1,
        Some(Err(error)) => results.failed.push(format!("{error:#}")),
        Some(Ok(found)) => {
            results.ended += 1;
            for (key, found) in keys.iter().zip(found) {
                if found.as_deref() != Some(value(key).as_bytes()) {
                    results.wrong.push(format!("asked for {key}, got {found:?}"));
                }
            }
        }
    }
    is_dropped
}

/// Polls a future at most this many times, letting other tasks run in between, and drops it.
async fn poll_times<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..times {
        if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

/// How a dropped future changes its key.
#[derive(Clone, Copy, Debug)]
enum Dropped {
    Set,
    Add,
    /// Takes a lease. Its loader never ends.
    Fetch,
}

#[test]
fn a_dropped_change_never_overtakes_a_later_one_on_redis() {
    a_dropped_change_never_overtakes_a_later_one(Kind::Redis);
}

#[test]
fn a_dropped_change_never_overtakes_a_later_one_on_memcached() {
    a_dropped_change_never_overtakes_a_later_one(Kind::Memcached);
}

/// Each round has its own key. The key is read when the later change has returned, and again at the end.
fn a_dropped_change_never_overtakes_a_later_one(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_at(kind, server.port());
    let rounds = count(1_000, 20_000);
    let mut wrong = Vec::new();
    current_thread().block_on(async {
        let mut rereads = Vec::new();
        for round in 0..rounds {
            // Every tenth round uses a store without a connection: the dropped change waits for the dial.
            let cache = if round % 10 == 0 { cache_at(kind, server.port()) } else { cache.clone() };
            let busy = keep_busy(&cache, round % 4);
            let key = format!("changed:{round}");
            let dropped = [Dropped::Set, Dropped::Add, Dropped::Fetch][round % 3];
            drop_a_change(&cache, dropped, &key, random(round) % 3 + 1).await;
            let expected = change_again(&cache, &key, random(round + 1)).await;
            let found = cache.get_raw(&key).await.unwrap();
            if found.as_deref() != expected {
                wrong.push(format!("at once: {key} after {dropped:?}: {found:?} instead of {expected:?}"));
            }
            rereads.push((key, dropped, expected));
            for task in busy {
                task.await.expect("no panic");
            }
        }
        for (key, dropped, expected) in rereads {
            let found = cache.get_raw(&key).await.unwrap();
            if found.as_deref() != expected {
                wrong.push(format!("at the end: {key} after {dropped:?}: {found:?} instead of {expected:?}"));
            }
        }
    });
    println!("{kind:?}: {} wrong in {rounds} rounds", wrong.len());
    assert!(wrong.is_empty(), "{kind:?}: {} in {rounds} rounds: {:?}", wrong.len(), &wrong[..wrong.len().min(3)]);
}

/// Other tasks read meanwhile, so that the change is queued with their requests.
fn keep_busy(cache: &Cache, readers: usize) -> Vec<tokio::task::JoinHandle<()>> {
    let read = |reader| {
        let cache = cache.clone();
        tokio::spawn(async move { drop(cache.get_raw(&key(reader)).await.unwrap()) })
    };
    (0..readers).map(read).collect()
}

async fn drop_a_change(cache: &Cache, dropped: Dropped, key: &str, polls: usize) {
    match dropped {
        Dropped::Set => drop(poll_times(cache.set_raw(key, "dropped", TTL), polls).await),
        Dropped::Add => drop(poll_times(cache.add(key, "dropped", TTL), polls).await),
        Dropped::Fetch => {
            let load = async || std::future::pending::<Result<String, Infallible>>().await;
            drop(poll_times(cache.fetch(key, TTL, load), polls).await);
        }
    }
}

/// Changes the key and waits for the result. Returns the value that must be stored from then on.
async fn change_again(cache: &Cache, key: &str, choice: usize) -> Option<&'static [u8]> {
    if choice.is_multiple_of(2) {
        cache.delete(key).await.unwrap();
        None
    } else {
        cache.set_raw(key, "later", TTL).await.unwrap();
        Some(b"later")
    }
}

#[test]
fn the_lease_of_a_dropped_fetch_is_released_on_redis() {
    the_lease_of_a_dropped_fetch_is_released(Kind::Redis);
}

#[test]
fn the_lease_of_a_dropped_fetch_is_released_on_memcached() {
    the_lease_of_a_dropped_fetch_is_released(Kind::Memcached);
}

/// A claim that arrived after its release would last for its whole TTL.
fn the_lease_of_a_dropped_fetch_is_released(kind: Kind) {
    const LONG: Duration = Duration::from_secs(600);
    let server = Server::start(kind);
    let leasing = || {
        let store = stores::from_url(&server.url(PATIENT)).unwrap();
        Cache::builder(store).lease(LONG).fetch_wait(LONG).build()
    };
    // `other` stands for another process: it shares no flight with the cache whose fetches are dropped.
    let (cache, other) = (leasing(), leasing());
    current_thread().block_on(async {
        for round in 0..count(500, 10_000) {
            let cache = if round % 10 == 0 { leasing() } else { cache.clone() };
            let busy = keep_busy(&cache, round % 4);
            let key = format!("leased:{round}");
            drop_a_change(&cache, Dropped::Fetch, &key, random(round) % 5 + 1).await;
            let load = async || Ok::<_, Infallible>("loaded".to_owned());
            let fetched = tokio::time::timeout(PATIENCE, other.fetch(&key, TTL, load)).await;
            let fetched = fetched.unwrap_or_else(|_| panic!("{kind:?}: timed out waiting for the lease of {key}"));
            assert_eq!(fetched.as_deref(), Ok("loaded"));
            for task in busy {
                task.await.expect("no panic");
            }
        }
    });
}

fn key(number: usize) -> String {
    format!("key:{}", number % KEYS)
}

fn value(key: &str) -> String {
    format!("the value of {key}")
}

/// A pseudo-random number: the same in every run.
fn random(number: usize) -> usize {
    let mixed = (number as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) as usize
}
