//! `close` waits for background work before the end of a process.

use std::convert::Infallible;
use std::time::Duration;

use prefork_cache::stores::MemoryStore;
use prefork_cache::{Cache, ErrorKind};

use crate::cache::everywhere;
use crate::conformance::{current_thread, multi_thread};
use crate::staleness::{HOUR, STALE_FOR_AN_HOUR};
use support::wait::until;

#[test]
fn a_close_waits_for_detached_loads_and_releases() {
    everywhere(|cache| {
        for runtime in [current_thread(), multi_thread()] {
            runtime.block_on(async {
                cache.set("k", &1, STALE_FOR_AN_HOUR).await.unwrap();
                cache.expire("k").await.unwrap();
                let (release, released) = tokio::sync::oneshot::channel::<()>();
                let load = async || {
                    released.await.unwrap();
                    Ok::<u32, Infallible>(2)
                };
                assert_eq!(cache.fetch_detached("k", STALE_FOR_AN_HOUR, load).await, Ok(1));
                let late = cache.close(Duration::from_millis(20)).await.unwrap_err();
                assert_eq!(late.kind(), ErrorKind::Timeout);
                let text = "closing the cache \"default\": 1 tasks in the background have not ended within 20ms";
                assert_eq!(late.to_string(), text);
                release.send(()).unwrap();
                cache.close(HOUR).await.unwrap();
                assert_eq!(cache.get("k").await.unwrap(), Some(2), "the loaded value is stored");
            });
        }
    });
}

#[test]
fn a_blocking_close_waits_for_the_tasks_of_other_threads() {
    let cache = Cache::builder(MemoryStore::new()).build();
    cache.blocking().close(HOUR).unwrap();
    let runtime = multi_thread();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let loading = cache.clone();
    let task = runtime.spawn(async move {
        let load = async || {
            released.await.unwrap();
            Ok::<u32, Infallible>(1)
        };
        loading.fetch_detached("k", HOUR, load).await
    });
    until("the load has begun", || cache.stats().loads == 1);
    assert_eq!(cache.blocking().close(Duration::from_millis(5)).unwrap_err().kind(), ErrorKind::Timeout);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| cache.blocking().close(HOUR));
        release.send(()).unwrap();
        closing.join().unwrap().unwrap();
    });
    assert_eq!(cache.blocking().get("k").unwrap(), Some(1));
    assert_eq!(runtime.block_on(task).unwrap(), Ok(1));
    runtime.block_on(async { cache.blocking().close(HOUR) }).unwrap();
}

#[test]
fn a_close_that_would_wait_for_its_own_thread_is_an_error() {
    let cache = Cache::builder(MemoryStore::new()).build();
    current_thread().block_on(async {
        cache.blocking().close(HOUR).unwrap();
        cache.set("k", &1, STALE_FOR_AN_HOUR).await.unwrap();
        cache.expire("k").await.unwrap();
        let pending = async || std::future::pending::<Result<u32, Infallible>>().await;
        assert_eq!(cache.fetch_detached("k", STALE_FOR_AN_HOUR, pending).await, Ok(1));
        assert_eq!(cache.blocking().close(HOUR).unwrap_err().kind(), ErrorKind::WouldDeadlock);
    });
    // The task was dropped with its runtime.
    cache.blocking().close(HOUR).unwrap();
}
