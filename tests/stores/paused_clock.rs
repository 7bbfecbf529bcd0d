//! Under tokio's paused clock, which goes on whenever all tasks wait: the cache's waits are measured by it, and by no
//! other.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prefork_cache::stores::MemoryStore;
use prefork_cache::{Cache, CacheStore, Result, Ttl, When};

use crate::staleness::HOUR;

/// A store of many processes, as it were: each handle on it is one.
#[derive(Debug)]
struct Shared {
    memory: Arc<MemoryStore>,
    reads: Arc<AtomicUsize>,
}

#[async_trait]
impl CacheStore for Shared {
    fn name(&self) -> &str {
        "shared"
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.memory.get(key).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        self.memory.set(key, value, ttl, when).await
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        self.memory.delete(key).await
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        self.memory.compare_and_set(key, expected, new, ttl).await
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        self.memory.clear(prefix).await
    }

    fn reset(&self) {}

    async fn reconnect(&self) -> Result<()> {
        Ok(())
    }
}

/// One loads for longer than a lease lives without a beat, and another one waits for it. Returns how often the store
/// was read.
async fn one_loads([loading, waiting]: [&Cache; 2], reads: &AtomicUsize) -> usize {
    const TAKES: Duration = Duration::from_secs(30);
    let loads = AtomicUsize::new(0);
    let load = async || {
        loads.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(TAKES).await;
        Ok::<u32, Infallible>(1)
    };
    let begun = tokio::time::Instant::now();
    let fetched = tokio::join!(loading.fetch("k", HOUR, load), waiting.fetch("k", HOUR, load));
    assert_eq!(fetched, (Ok(1), Ok(1)));
    assert_eq!(loads.into_inner(), 1);
    let took = begun.elapsed();
    assert!((TAKES..TAKES + Duration::from_secs(1)).contains(&took), "{took:?}");
    reads.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn a_fetch_waits_for_a_flight() {
    let (memory, reads) = (Arc::new(MemoryStore::new()), Arc::default());
    let cache = Cache::builder(Shared { memory, reads: Arc::clone(&reads) }).build();
    let reads = one_loads([&cache, &cache], &reads).await;
    assert!(reads < 50, "{reads} reads: the beats of a lease, and hardly any others");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_waits_for_a_lease() {
    let (memory, reads) = (Arc::new(MemoryStore::new()), Arc::default());
    let process = || Cache::builder(Shared { memory: Arc::clone(&memory), reads: Arc::clone(&reads) }).build();
    let [loading, waiting] = [process(), process()];
    let reads = one_loads([&loading, &waiting], &reads).await;
    // Two in 0.1 s, once the pauses are that long.
    assert!((300..750).contains(&reads), "{reads} reads");
}
