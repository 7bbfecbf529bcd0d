//! A store of somebody else's that suspends, under the blocking API.

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

/// Memory whose every answer comes from another thread.
#[derive(Debug)]
struct Elsewhere(MemoryStore);

/// Always, however quick that thread is.
async fn suspend() {
    let mut is_answered = false;
    poll_fn(|cx| {
        if mem::replace(&mut is_answered, true) {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        thread::spawn(move || waker.wake());
        Poll::Pending
    })
    .await;
}

#[async_trait]
impl CacheStore for Elsewhere {
    fn name(&self) -> &str {
        "elsewhere"
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
    Cache::builder(Elsewhere(MemoryStore::new())).build()
}

#[test]
fn outside_of_a_runtime_it_is_waited_for() {
    let cache = cache();
    cache.blocking().set("k", &1, TTL).unwrap();
    assert_eq!(cache.blocking().get("k").unwrap(), Some(1));
}

#[test]
fn on_a_multi_thread_runtime_it_is_waited_for() {
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
fn on_the_thread_of_a_current_thread_runtime_it_is_an_error() {
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
fn asynchronously_it_is_awaited() {
    let cache = cache();
    current_thread().block_on(async {
        cache.set("k", &1, TTL).await.unwrap();
        assert_eq!(cache.fetch("k", TTL, async || Ok::<u8, std::convert::Infallible>(2)).await, Ok(1));
    });
}

/// Says that there is an entry where it then finds none.
#[derive(Debug)]
struct Fickle(MemoryStore);

#[async_trait]
impl CacheStore for Fickle {
    fn name(&self) -> &str {
        "fickle"
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

/// There is no lease to win, and none to wait for: the bound of the wait is what ends it.
#[test]
fn a_fetch_ends_whatever_a_store_says_of_leases() {
    let cache = Cache::builder(Fickle(MemoryStore::new())).load_timeout(Duration::from_millis(50)).build();
    let load = || Ok::<u32, std::convert::Infallible>(1);
    assert_eq!(cache.blocking().fetch("k", TTL, load), Ok(1));
    assert_eq!(current_thread().block_on(cache.fetch("k", TTL, async || load())), Ok(1));
}
