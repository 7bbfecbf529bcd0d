//! Promise 2: a reply answers its own request or none.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use prefork_cache::{Cache, Result};

use crate::callers::{HOUR, cache_at, current_thread_runtime};
use crate::harness::{Mode, Scenario, count, with_each_server_and_mode};
use support::forks::fork;
use support::proxy::{Fault, Proxy};
use support::servers::{Kind, Server};
use support::wait::until;

pub(crate) fn scenarios() -> Vec<Scenario> {
    with_each_server_and_mode("under_network_faults", under_network_faults)
}

const KEYS: usize = 100;
const CALLERS: usize = 3;

/// The timeout is shorter than the proxy's delay.
const OPTIONS: &str = "timeout=15ms&connect_timeout=5s&failures=1000000&retry_after=1ms";
const LATE: Duration = Duration::from_millis(20);

/// The outcomes of the operations.
#[derive(Debug, Default)]
struct Outcomes {
    right: AtomicUsize,
    missed: AtomicUsize,
    failed: AtomicUsize,
    cancelled: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

/// Several callers at once; replies that are late, lost, cut and garbled. On tokio, some futures are dropped as well.
fn under_network_faults(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), OPTIONS);
    for number in 0..KEYS {
        let key = key(number);
        until("every key is set", || cache.blocking().set(&key, &value(&key), HOUR).is_ok());
    }
    proxy.plan(|number, piece| fault(number, piece.len()));
    let operations = count(10_000, 100_000);
    let outcomes = operate_concurrently(mode, &cache, operations);
    println!("{operations} operations: {outcomes:?}");
    assert_none_wrong(&outcomes, operations);

    // Again, in a child that is forked while the faults continue.
    fork(|| assert_none_wrong(&operate_concurrently(mode, &cache, operations / 5), operations / 5)).join();

    proxy.release();
    until(
        "the cache works without faults",
        || matches!(cache.blocking().get::<String>(&key(1)), Ok(Some(found)) if found == value(&key(1))),
    );
}

fn assert_none_wrong(outcomes: &Outcomes, operations: usize) {
    assert_eq!(*outcomes.wrong.lock().expect("no panic"), Vec::<String>::new());
    let right = outcomes.right.load(Ordering::SeqCst);
    assert!(right > operations / 20, "too few replies were right: {outcomes:?}");
}

/// Returns a fault for one reply in six.
fn fault(number: usize, length: usize) -> Fault {
    match random(number) % 36 {
        0 => Fault::Cut(0),
        1 => Fault::Cut(length / 2),
        2 => Fault::Garble(0),
        3 | 4 => Fault::Delay(LATE),
        5 => Fault::Swallow,
        _ => Fault::None,
    }
}

fn operate_concurrently(mode: Mode, cache: &Cache, operations: usize) -> Outcomes {
    let outcomes = std::sync::Arc::new(Outcomes::default());
    let numbers = move |caller: usize| (0..operations).skip(caller).step_by(CALLERS);
    match mode {
        Mode::Blocking => thread::scope(|scope| {
            for caller in 0..CALLERS {
                let outcomes = &outcomes;
                scope.spawn(move || numbers(caller).for_each(|number| operate(cache, number, outcomes)));
            }
        }),
        Mode::Tokio => current_thread_runtime().block_on(async {
            let operate_all = |caller| {
                let (cache, outcomes) = (cache.clone(), outcomes.clone());
                async move {
                    for number in numbers(caller) {
                        operate_or_cancel(&cache, number, &outcomes).await;
                    }
                }
            };
            let tasks: Vec<_> = (0..CALLERS).map(|caller| tokio::spawn(operate_all(caller))).collect();
            for task in tasks {
                task.await.expect("no panic");
            }
        }),
    }
    std::sync::Arc::into_inner(outcomes).expect("every caller is done")
}

/// Runs one operation, inline.
fn operate(cache: &Cache, number: usize, outcomes: &Outcomes) {
    let keys = [key(number), key(number * 7 + 1), key(number * 11 + 2)];
    match number % 5 {
        0 => outcomes.count_set(cache.blocking().set(&keys[0], &value(&keys[0]), HOUR)),
        1 => {
            let keys_read = keys.each_ref().map(String::as_str);
            keys.iter()
                .zip(cache.blocking().get_many(&keys_read))
                .for_each(|(key, result)| outcomes.count_get(key, result));
        }
        2 => outcomes.count_set(cache.blocking().increment("counter", 1, HOUR).map(|_| ())),
        _ => outcomes.count_get(&keys[0], cache.blocking().get(&keys[0])),
    }
}

/// Runs one operation. One future in four is dropped early, at any point.
async fn operate_or_cancel(cache: &Cache, number: usize, outcomes: &Outcomes) {
    let keys = [key(number), key(number * 7 + 1), key(number * 11 + 2)];
    let operate = async {
        match number % 5 {
            0 => outcomes.count_set(cache.set(&keys[0], &value(&keys[0]), HOUR).await),
            1 => {
                let keys_read = keys.each_ref().map(String::as_str);
                let results = cache.get_many(&keys_read).await;
                keys.iter().zip(results).for_each(|(key, result)| outcomes.count_get(key, result));
            }
            2 => outcomes.count_set(cache.increment("counter", 1, HOUR).await.map(|_| ())),
            _ => outcomes.count_get(&keys[0], cache.get(&keys[0]).await),
        }
    };
    let patience = match random(number) % 4 {
        0 => Duration::from_micros((random(number + 1) % 1_000) as u64),
        _ => HOUR,
    };
    if tokio::time::timeout(patience, operate).await.is_err() {
        outcomes.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

impl Outcomes {
    fn count_get(&self, key: &str, result: Result<Option<String>>) {
        let counter = match result {
            Ok(Some(found)) if found == value(key) => &self.right,
            Ok(Some(other)) => {
                self.wrong.lock().expect("no panic").push(format!("asked for {key}, got {other}"));
                return;
            }
            Ok(None) => &self.missed,
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn count_set(&self, done: Result<()>) {
        if done.is_err() {
            self.failed.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn key(number: usize) -> String {
    format!("key {}", number % KEYS)
}

/// The only value that a key ever has.
fn value(key: &str) -> String {
    format!("the value of {key}")
}

/// A pseudo-random number: the same in every run.
fn random(number: usize) -> usize {
    let mixed = (number as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) as usize
}
