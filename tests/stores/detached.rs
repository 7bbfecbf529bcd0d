//! Loads that continue without their callers.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prefork_cache::Cache;
use prefork_cache::stores::MemoryStore;

use crate::cache::everywhere;
use crate::conformance::{current_thread, multi_thread};
use crate::staleness::{ALWAYS_AHEAD, HOUR, STALE_FOR_AN_HOUR, make_stale, until_it_holds};

#[test]
fn a_detached_load_makes_no_caller_wait() {
    everywhere(|cache| {
        for runtime in [current_thread(), multi_thread()] {
            runtime.block_on(async {
                let loads = Arc::new(AtomicUsize::new(0));
                let (release, released) = tokio::sync::watch::channel(false);
                let fetch = || {
                    let (loads, mut released) = (Arc::clone(&loads), released.clone());
                    cache.fetch_detached("k", STALE_FOR_AN_HOUR, async move || {
                        loads.fetch_add(1, Ordering::SeqCst);
                        released.wait_for(|released| *released).await.unwrap();
                        Ok::<u32, Infallible>(2)
                    })
                };
                cache.set("k", &1, STALE_FOR_AN_HOUR).await.unwrap();
                assert_eq!(fetch().await, Ok(1), "the value is fresh");
                cache.expire("k").await.unwrap();
                for _ in 0..10 {
                    assert_eq!(fetch().await, Ok(1));
                }
                until_it_holds("the load has begun", || loads.load(Ordering::SeqCst) == 1).await;
                release.send(true).unwrap();
                while cache.get("k").await.unwrap() != Some(2) {
                    tokio::task::yield_now().await;
                }
                assert_eq!(loads.load(Ordering::SeqCst), 1);
                cache.delete("k").await.unwrap();
            });
        }
    });
}

/// `soft_timeout` returns the loaded value if the load ends in time, otherwise the stale value, and the load continues.
#[test]
fn a_detached_fetch_waits_for_its_soft_timeout() {
    let cache = Cache::builder(MemoryStore::new()).build();
    current_thread().block_on(async {
        let stale = async || {
            cache.set("k", &1, STALE_FOR_AN_HOUR).await.unwrap();
            cache.expire("k").await.unwrap();
        };
        stale().await;
        let patient = cache.soft_timeout(HOUR);
        let load = async || {
            tokio::task::yield_now().await;
            Ok::<u32, Infallible>(2)
        };
        assert_eq!(patient.fetch_detached("k", STALE_FOR_AN_HOUR, load).await, Ok(2));
        stale().await;
        let fails = async || Err::<u32, _>("no");
        assert_eq!(patient.fetch_detached("k", STALE_FOR_AN_HOUR, fails).await, Ok(1));
        stale().await;
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let slow = async || {
            released.await.unwrap();
            Ok::<u32, Infallible>(3)
        };
        let brief = cache.soft_timeout(Duration::from_millis(5));
        assert_eq!(brief.fetch_detached("k", STALE_FOR_AN_HOUR, slow).await, Ok(1));
        release.send(()).unwrap();
        until_it_holds("the load has ended", || cache.blocking().get("k").unwrap() == Some(3)).await;
        // A value that is refreshed ahead is fresh: the fetch does not wait.
        cache.set("k", &4, ALWAYS_AHEAD).await.unwrap();
        let pending = async || std::future::pending::<Result<u32, Infallible>>().await;
        assert_eq!(patient.fetch_detached("k", ALWAYS_AHEAD, pending).await, Ok(4));
    });
}

#[test]
fn a_detached_load_outlives_its_caller() {
    let cache = Cache::builder(MemoryStore::new()).build();
    current_thread().block_on(async {
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let caller = tokio::spawn({
            let cache = cache.clone();
            let load = async || {
                begun.send(()).unwrap();
                released.await.unwrap();
                Ok::<u32, Infallible>(1)
            };
            async move { cache.fetch_detached("k", HOUR, load).await }
        });
        has_begun.await.unwrap();
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        let waiting = cache.clone();
        let load = async || -> Result<u32, Infallible> { panic!("another caller loads") };
        let waiter = tokio::spawn(async move { waiting.fetch("k", HOUR, load).await });
        tokio::task::yield_now().await;
        release.send(()).unwrap();
        assert_eq!(waiter.await.unwrap(), Ok(1));
    });
}

#[test]
fn a_detached_load_fails_or_panics_in_its_own_caller() {
    let cache = Cache::builder(MemoryStore::new()).build();
    current_thread().block_on(async {
        assert_eq!(cache.fetch_detached("k", HOUR, async || Err::<u32, _>("no")).await, Err("no"));
        let caller = tokio::spawn({
            let cache = cache.clone();
            let load = async || -> Result<u32, Infallible> { panic!("as planned") };
            async move { cache.fetch_detached("k", HOUR, load).await }
        });
        assert!(caller.await.unwrap_err().is_panic());
        assert_eq!(cache.fetch_detached("k", HOUR, async || Ok::<u32, Infallible>(1)).await, Ok(1));
        assert_eq!(cache.fetch_detached("", HOUR, async || Ok::<u32, Infallible>(2)).await, Ok(2), "not cached");
    });
}

/// Without a runtime it is a plain fetch.
#[test]
fn a_detached_fetch_works_without_a_runtime() {
    everywhere(|cache| {
        make_stale(cache.blocking(), "k", 1);
        let mut fetch = std::pin::pin!(cache.fetch_detached("k", HOUR, async || Ok::<u32, Infallible>(2)));
        let polled = fetch.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        assert_eq!(polled, std::task::Poll::Ready(Ok(2)));
    });
}
