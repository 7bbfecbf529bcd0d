//! A user's own store that suspends, under the blocking API.

use std::future::poll_fn;
use std::mem;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prefork_cache::stores::MemoryStore;
use prefork_cache::{Cache, CacheStore, ErrorKind, Result, Ttl, When};

use crate::conformance::{current_thread, multi_thread};

const TTL: Duration = Duration::from_secs(600);

/// A memory store whose operations are woken by another thread.
#[derive(Debug)]
struct OtherThread(MemoryStore);

/// Suspends once, however fast the other thread is.
async fn suspend() {
    let mut has_suspended = false;
    poll_fn(|cx| {
        if mem::replace(&mut has_suspended, true) {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        thread::spawn(move || waker.wake());
        Poll::Pending
    })
    .await;
}

#[async_trait]
impl CacheStore for OtherThread {
    fn name(&self) -> &str {
        "other thread"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        suspend().await;
        self.0.get(key).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        suspend().await;
        self.0.set(key, value, ttl, when).await
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        self.0.delete(key).await
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        self.0.compare_and_set(key, expected, new, ttl).await
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        self.0.clear(prefix).await
    }

    fn reset(&self) {}

    async fn reconnect(&self) -> Result<()> {
        Ok(())
    }
}

fn cache() -> Cache {
    Cache::builder(OtherThread(MemoryStore::new())).build()
}

#[test]
fn outside_a_runtime_the_thread_waits() {
    let cache = cache();
    cache.blocking().set("k", &1, TTL).unwrap();
    assert_eq!(cache.blocking().get("k").unwrap(), Some(1));
}

#[test]
fn on_a_multi_thread_runtime_the_worker_waits() {
    multi_thread().block_on(async {
        let task = tokio::spawn(async {
            let cache = cache();
            cache.blocking().set("k", &1, TTL).unwrap();
            cache.blocking().get("k").unwrap()
        });
        assert_eq!(task.await.unwrap(), Some(1));
    });
}

#[test]
fn on_a_current_thread_runtime_waiting_is_an_error() {
    let cache = cache();
    let error = current_thread().block_on(async { cache.blocking().get::<u8>("k").unwrap_err() });
    assert_eq!(error.kind(), ErrorKind::WouldDeadlock);
    assert_eq!(
        error.to_string(),
        "the store suspends, and waiting for it would block the only thread of this tokio runtime: \
         use the asynchronous method, or a thread outside of the runtime"
    );
}

#[test]
fn an_asynchronous_caller_awaits_the_store() {
    let cache = cache();
    current_thread().block_on(async {
        cache.set("k", &1, TTL).await.unwrap();
        assert_eq!(cache.fetch("k", TTL, async || Ok::<u8, std::convert::Infallible>(2)).await, Ok(1));
    });
}

/// Reports that an entry exists, and then finds none.
#[derive(Debug)]
struct Inconsistent(MemoryStore);

#[async_trait]
impl CacheStore for Inconsistent {
    fn name(&self) -> &str {
        "inconsistent"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.0.get(key).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        if when == When::IfAbsent { Ok(false) } else { self.0.set(key, value, ttl, when).await }
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        self.0.delete(key).await
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        self.0.compare_and_set(key, expected, new, ttl).await
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        self.0.clear(prefix).await
    }

    fn reset(&self) {}

    async fn reconnect(&self) -> Result<()> {
        Ok(())
    }
}

/// There is no lease to take and none to wait for: the bound of the wait ends the fetch.
#[test]
fn a_fetch_ends_on_a_store_with_inconsistent_leases() {
    let cache = Cache::builder(Inconsistent(MemoryStore::new())).load_timeout(Duration::from_millis(50)).build();
    let load = || Ok::<u32, std::convert::Infallible>(1);
    assert_eq!(cache.blocking().fetch("k", TTL, load), Ok(1));
    assert_eq!(current_thread().block_on(cache.fetch("k", TTL, async || load())), Ok(1));
}
