//! Under tokio's paused clock, which advances when all tasks wait: the cache measures its waits by this clock alone.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prefork_cache::stores::MemoryStore;
use prefork_cache::{Begun, Cache, CacheStore, Clock, Expiry, Result, Ttl, When};

use crate::staleness::HOUR;

/// A store that counts as shared among processes. Each handle on it stands for one process.
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

/// One cache loads for longer than a lease lives without a renewal, and the other waits for the value. Returns the
/// number of reads of the store.
async fn one_loads([loading, waiting]: [&Cache; 2], reads: &AtomicUsize) -> usize {
    const LOAD_TIME: Duration = Duration::from_secs(30);
    let loads = AtomicUsize::new(0);
    let load = async || {
        loads.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(LOAD_TIME).await;
        Ok::<u32, Infallible>(1)
    };
    let begun = tokio::time::Instant::now();
    let fetched = tokio::join!(loading.fetch("k", HOUR, load), waiting.fetch("k", HOUR, load));
    assert_eq!(fetched, (Ok(1), Ok(1)));
    assert_eq!(loads.into_inner(), 1);
    let elapsed = begun.elapsed();
    assert!((LOAD_TIME..LOAD_TIME + Duration::from_secs(1)).contains(&elapsed), "{elapsed:?}");
    reads.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn a_fetch_waits_for_a_flight() {
    let (memory, reads) = (Arc::new(MemoryStore::new()), Arc::default());
    let cache = Cache::builder(Shared { memory, reads: Arc::clone(&reads) }).build();
    let reads = one_loads([&cache, &cache], &reads).await;
    assert!(reads < 50, "{reads} reads: the renewals of the lease, and few others");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_waits_for_a_lease() {
    let (memory, reads) = (Arc::new(MemoryStore::new()), Arc::default());
    let process = || Cache::builder(Shared { memory: Arc::clone(&memory), reads: Arc::clone(&reads) }).build();
    let [loading, waiting] = [process(), process()];
    let reads = one_loads([&loading, &waiting], &reads).await;
    // Two reads per 0.1 s, once the pauses have reached that length.
    assert!((300..750).contains(&reads), "{reads} reads");
}

/// Values age by this clock too, where the cache is configured so: fresh, refresh-ahead, stale, waiting after a
/// failure, expired.
#[tokio::test(start_paused = true)]
async fn values_age_by_the_clock_of_the_runtime() {
    let (memory, reads) = (Arc::new(MemoryStore::new()), Arc::default());
    let shared = Shared { memory: Arc::clone(&memory), reads };
    let minute = Duration::from_secs(60);
    for builder in [Cache::builder(memory), Cache::builder(shared)] {
        let cache = builder.clock(Clock::tokio()).load_retry_delay(minute).build();
        let loads = AtomicUsize::new(0);
        let fetch = async |loaded: Result<u32, &'static str>| {
            let load = async || {
                loads.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                loaded
            };
            let expiry = Expiry::after(10 * minute).refresh_ahead(minute).stale_for(60 * minute);
            let fetched = tokio::join!(cache.fetch("k", expiry, load), cache.fetch("k", expiry, load));
            (fetched, loads.swap(0, Ordering::SeqCst))
        };
        assert_eq!(fetch(Ok(1)).await, ((Ok(1), Ok(1)), 1));
        tokio::time::advance(8 * minute).await;
        assert_eq!(fetch(Ok(2)).await, ((Ok(1), Ok(1)), 0), "fresh");
        tokio::time::advance(minute).await;
        assert_eq!(fetch(Ok(2)).await, ((Ok(2), Ok(1)), 1), "refreshed ahead");
        tokio::time::advance(10 * minute).await;
        assert_eq!(fetch(Err("no")).await, ((Ok(2), Ok(2)), 1), "stale");
        assert_eq!(fetch(Ok(3)).await, ((Ok(2), Ok(2)), 0), "not tried again yet");
        tokio::time::advance(minute).await;
        assert_eq!(fetch(Ok(3)).await, ((Ok(3), Ok(2)), 1), "tried again");
        tokio::time::advance(80 * minute).await;
        assert_eq!(cache.get::<u32>("k").await.unwrap(), None, "expired");
        assert!(cache.add("k", &4, minute).await.unwrap());
        tokio::time::advance(minute).await;
        assert!(!cache.exists("k").await.unwrap());
        assert!(!cache.replace("k", &5, minute).await.unwrap());
        assert!(cache.clone().take::<u32>("k").await.unwrap().is_none());
        cache.delete("k").await.unwrap();
    }
}

/// The other protocol for loading once among processes: the second process takes the lease over if it is not renewed.
#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_renewed_is_taken_over_by_the_clock_of_the_runtime() {
    let (memory, reads) = (Arc::new(MemoryStore::new()), Arc::new(AtomicUsize::new(0)));
    let process = || Cache::builder(Shared { memory: Arc::clone(&memory), reads: Arc::clone(&reads) }).build();
    let [first, second] = [process(), process()];
    // The lease of a process on another host that has died.
    let Begun::Claim(claim) = first.fetch_begin::<u32>("{k}").await else { panic!("no value is stored") };
    let lease = memory.get("{k}:prefork-lease").await.unwrap().expect("a lease");
    drop(claim);
    first.close(HOUR).await.unwrap();
    memory.set("{k}:prefork-lease", lease, Ttl::Never, When::Always).await.unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(second.fetch("{k}", HOUR, async || Ok::<u32, Infallible>(2)).await, Ok(2));
    let elapsed = begun.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&elapsed), "{elapsed:?} by the paused clock");
    assert!(reads.load(Ordering::SeqCst) < 150, "{reads:?} reads: with pauses of 0.1 s");
}
