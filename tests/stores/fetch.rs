//! `fetch`: one loader per key, however the load ends.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, NullStore, from_url};
use prefork_cache::{Cache, Codec};
use tokio::sync::oneshot;

use crate::cache::everywhere;
use crate::conformance::{current_thread, multi_thread};
use support::servers::{Kind, Server, free_port};

const TTL: Duration = Duration::from_secs(600);
const CALLERS: usize = 16;

fn memory() -> Cache {
    Cache::builder(MemoryStore::new()).build()
}

#[test]
fn threads_that_miss_together_load_once() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let cache = Cache::builder(from_url(&server.url("")).unwrap()).build();
        for round in 0..20 {
            let loads = AtomicUsize::new(0);
            let barrier = Barrier::new(CALLERS);
            std::thread::scope(|scope| {
                for _ in 0..CALLERS {
                    scope.spawn(|| {
                        barrier.wait();
                        let load = || Ok::<_, Infallible>(loads.fetch_add(1, Ordering::SeqCst));
                        assert_eq!(cache.blocking().fetch(&format!("k{round}"), TTL, load), Ok(0));
                    });
                }
            });
            assert_eq!(loads.into_inner(), 1, "{kind:?}");
        }
    }
}

#[test]
fn tasks_that_miss_together_load_once() {
    for runtime in [current_thread(), multi_thread()] {
        let cache = memory();
        let loads = Arc::new(AtomicUsize::new(0));
        runtime.block_on(async {
            let tasks: Vec<_> = (0..CALLERS)
                .map(|_| {
                    let (cache, loads) = (cache.clone(), Arc::clone(&loads));
                    tokio::spawn(async move {
                        let load = async || {
                            tokio::task::yield_now().await;
                            Ok::<_, Infallible>(loads.fetch_add(1, Ordering::SeqCst))
                        };
                        cache.fetch("k", TTL, load).await
                    })
                })
                .collect();
            for task in tasks {
                assert_eq!(task.await.unwrap(), Ok(0));
            }
        });
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    }
}

/// Callers that wait get the value even if no store keeps it.
#[test]
fn a_loaded_value_is_shared_even_if_it_is_not_stored() {
    let dead = from_url(&format!("redis://127.0.0.1:{}", free_port())).unwrap();
    for cache in [Cache::builder(NullStore::new()).build(), Cache::builder(dead).build()] {
        let loads = AtomicUsize::new(0);
        let (started, waiting) = (Barrier::new(2), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let load = || {
                    started.wait();
                    support::wait::until("another caller has missed", || waiting.load(Ordering::SeqCst) == 1);
                    Ok::<_, Infallible>(loads.fetch_add(1, Ordering::SeqCst))
                };
                assert_eq!(cache.blocking().fetch("k", TTL, load), Ok(0));
            });
            started.wait();
            waiting.store(1, Ordering::SeqCst);
            let second = cache.blocking().fetch("k", TTL, || Ok::<_, Infallible>(loads.fetch_add(1, Ordering::SeqCst)));
            // It either waited for the first caller, or arrived after the first had ended.
            assert!(second.is_ok());
        });
    }
}

#[test]
fn raw_values_are_fetched_without_an_envelope() {
    everywhere(|cache| {
        let name = format!("{cache:?}");
        let cache = cache.blocking();
        assert_eq!(cache.fetch_raw("n", TTL, || Ok::<_, Infallible>("41")).unwrap(), "41", "{name}");
        assert_eq!(cache.increment("n", 1, TTL).unwrap(), 42, "a raw number is a counter");
        assert_eq!(
            cache.fetch_raw("n", TTL, || -> Result<&str, Infallible> { panic!("the value is stored") }).unwrap(),
            "42"
        );
        cache.set("typed", &1_u8, TTL).unwrap();
        let typed = cache.get_raw("typed").unwrap();
        assert_eq!(cache.fetch_raw("typed", TTL, || Err::<&str, _>("not called")).ok(), typed, "{name}");
        assert_eq!(cache.fetch_raw("none", TTL, || Err::<&str, _>("no")), Err("no"));
        assert!(!cache.exists("none").unwrap());
    });
}

#[test]
fn a_failure_goes_to_its_own_caller_and_is_not_cached() {
    let cache = memory();
    let cache = cache.blocking();
    assert_eq!(cache.fetch("k", TTL, || Err::<u8, _>("no")), Err("no"));
    assert!(!cache.exists("k").unwrap());
    assert_eq!(cache.fetch("k", TTL, || Ok::<u8, &str>(1)), Ok(1));
    assert_eq!(cache.fetch("k", TTL, || Err::<u8, _>("not called")), Ok(1));
}

#[test]
fn a_panic_does_not_poison_the_key() {
    let cache = memory();
    let load = || -> Result<u8, Infallible> { panic!("as planned") };
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cache.blocking().fetch("k", TTL, load)));
    assert!(panicked.is_err());
    assert_eq!(cache.blocking().fetch("k", TTL, || Ok::<u8, Infallible>(1)), Ok(1));
}

#[test]
fn when_a_leader_fails_a_waiter_takes_over() {
    let cache = memory();
    let (begun, has_begun) = mpsc::channel();
    let (fail, may_fail) = mpsc::channel();
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| {
            let (begun, may_fail) = (begun, may_fail);
            let load = || {
                begun.send(()).unwrap();
                may_fail.recv().unwrap();
                Err::<u8, _>("the leader's")
            };
            cache.blocking().fetch("k", TTL, load)
        });
        has_begun.recv().unwrap();
        let waiter = scope.spawn(|| cache.blocking().fetch("k", TTL, || Ok::<u8, &str>(2)));
        fail.send(()).unwrap();
        assert_eq!(leader.join().unwrap(), Err("the leader's"));
        assert_eq!(waiter.join().unwrap(), Ok(2));
    });
    assert_eq!(cache.blocking().get("k").unwrap(), Some(2));
}

#[test]
fn when_a_leader_is_cancelled_a_waiter_takes_over() {
    let cache = memory();
    current_thread().block_on(async {
        let (begun, has_begun) = oneshot::channel();
        let leading = cache.clone();
        let leader = tokio::spawn(async move {
            let load = async || {
                begun.send(()).unwrap();
                std::future::pending::<Result<u8, Infallible>>().await
            };
            leading.fetch("k", TTL, load).await
        });
        has_begun.await.unwrap();
        let waiting = cache.clone();
        let waiter = tokio::spawn(async move { waiting.fetch("k", TTL, async || Ok::<u8, Infallible>(2)).await });
        tokio::task::yield_now().await;
        leader.abort();
        assert!(leader.await.unwrap_err().is_cancelled());
        assert_eq!(waiter.await.unwrap(), Ok(2));
    });
}

/// A leader that hangs delays one caller, not every caller while it hangs.
#[test]
fn a_value_loaded_after_a_timed_out_wait_is_stored() {
    let cache = Cache::builder(MemoryStore::new()).load_timeout(Duration::from_millis(50)).build();
    current_thread().block_on(async {
        let leading = cache.clone();
        let stuck = async move || std::future::pending::<Result<u8, Infallible>>().await;
        let leader = tokio::spawn(async move { leading.fetch("k", TTL, stuck).await });
        tokio::task::yield_now().await;
        assert_eq!(cache.fetch("k", TTL, async || Ok::<u8, Infallible>(2)).await, Ok(2));
        assert_eq!(cache.fetch("k", TTL, async || Ok::<u8, Infallible>(3)).await, Ok(2));
        leader.abort();
    });
}

#[test]
fn the_longest_wait_is_accepted() {
    let cache = Cache::builder(MemoryStore::new()).fetch_wait(Duration::MAX).load_timeout(Duration::MAX).build();
    assert_eq!(cache.blocking().fetch("k", TTL, || Ok::<u8, Infallible>(1)), Ok(1));
}

/// The wait is bounded. After that every caller loads for itself, asynchronous callers too.
#[test]
fn waits_are_bounded() {
    let cache = Cache::builder(MemoryStore::new()).load_timeout(Duration::from_millis(50)).build();
    let (begun, has_begun) = mpsc::channel();
    let (release, released) = mpsc::channel();
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| {
            let (begun, released) = (begun, released);
            let load = || {
                begun.send(()).unwrap();
                released.recv().unwrap();
                Ok::<u8, Infallible>(1)
            };
            cache.blocking().fetch("k", TTL, load)
        });
        has_begun.recv().unwrap();
        assert_eq!(cache.blocking().fetch("k", TTL, || Ok::<u8, Infallible>(2)), Ok(2));
        cache.blocking().delete("k").unwrap();
        assert_eq!(current_thread().block_on(cache.fetch("k", TTL, async || Ok::<u8, Infallible>(3))), Ok(3));
        release.send(()).unwrap();
        assert_eq!(leader.join().unwrap(), Ok(1));
    });
}

#[test]
fn a_loader_that_fetches_its_own_key_does_not_wait_for_itself() {
    let cache = memory();
    let inner = || cache.blocking().fetch("k", TTL, || Ok::<u8, Infallible>(1));
    assert_eq!(cache.blocking().fetch("k", TTL, || inner().map(|value| value + 1)), Ok(2));
}

/// A loader of the blocking API may do everything that code outside a loader may.
#[test]
fn a_blocking_loader_may_use_a_runtime() {
    let cache = memory();
    let load = || current_thread().block_on(cache.fetch("inner", TTL, async || Ok::<u8, Infallible>(7)));
    assert_eq!(cache.blocking().fetch("outer", TTL, load), Ok(7));
    assert_eq!(cache.blocking().get("inner").unwrap(), Some(7));
}

/// One failure is reported, not two, and no caller waits twice for one outage.
#[test]
fn after_a_failed_read_nothing_is_written() {
    let reported = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reported);
    let dead = from_url(&format!("redis://127.0.0.1:{}", free_port())).unwrap();
    let cache = Cache::builder(dead).on_error(move |_| _ = count.fetch_add(1, Ordering::SeqCst)).build();
    assert_eq!(cache.blocking().fetch("k", TTL, || Ok::<u8, Infallible>(1)), Ok(1));
    assert_eq!(current_thread().block_on(cache.fetch("k", TTL, async || Ok::<u8, Infallible>(2))), Ok(2));
    assert_eq!(reported.load(Ordering::SeqCst), 2, "one failure for each fetch");
}

/// While the store is down, the outage and the value that cannot be encoded are two failures.
#[test]
fn an_encode_error_is_reported_during_an_outage_too() {
    let reported = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reported);
    let dead = from_url(&format!("redis://127.0.0.1:{}", free_port())).unwrap();
    let cache = Cache::builder(dead).codec(Codec::Json).on_error(move |_| _ = count.fetch_add(1, Ordering::SeqCst));
    let unencodable = HashMap::from([((1_u8, 2_u8), 3_u8)]);
    let load = || Ok::<_, Infallible>(unencodable.clone());
    assert_eq!(cache.build().blocking().fetch("k", TTL, load), Ok(unencodable.clone()));
    assert_eq!(reported.load(Ordering::SeqCst), 2);
}
