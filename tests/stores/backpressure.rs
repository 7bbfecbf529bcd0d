//! Many more requests at once than a server can answer: 20,000 tasks while it is paused. Each ends with its reply or
//! with a transient error. No write that was reported as done is lost, and the store works afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prefork_cache::{Cache, ErrorKind, Result, stores};

use crate::conformance::current_thread;
use support::servers::{Kind, Server};
use support::wait::PATIENCE;

const TTL: Duration = Duration::from_secs(3600);
const TASKS: usize = 20_000;
const KEYS: usize = 100;
/// Failures never open the circuit breaker: these tests are not about it.
const NO_BREAKER: &str = "connect_timeout=20s&failures=1000000&retry_after=1ms";

#[test]
fn many_requests_outlast_a_short_pause_of_redis() {
    many_requests_outlast_a_short_pause(Kind::Redis);
}

#[test]
fn many_requests_outlast_a_short_pause_of_memcached() {
    many_requests_outlast_a_short_pause(Kind::Memcached);
}

#[test]
fn many_requests_fail_in_a_long_pause_of_redis() {
    many_requests_fail_in_a_long_pause(Kind::Redis);
}

#[test]
fn many_requests_fail_in_a_long_pause_of_memcached() {
    many_requests_fail_in_a_long_pause(Kind::Memcached);
}

/// A task that has its reply sends its next request at once. It does not overtake the tasks that wait.
#[test]
fn waiting_tasks_are_served_in_order() {
    let server = Server::start(Kind::Redis);
    let cache = cache(&server, "20s");
    let read_five = |cache: Cache| async move {
        for number in 0..5 {
            cache.get_raw(&key(number)).await?;
        }
        Ok(Instant::now())
    };
    current_thread().block_on(async {
        let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(read_five(cache.clone()))).collect();
        let start = Instant::now();
        let mut ends = Vec::new();
        for task in tasks {
            let end: Result<Instant> = task.await.unwrap();
            ends.push(end.unwrap() - start);
        }
        let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
        assert!(*last < 2 * *first, "the first had five answers after {first:?}, the last after {last:?}");
    });
}

/// A handle with a longer timeout waits longer for capacity too: after a request of the store's own timeout has failed,
/// the requests that have waited for longer still succeed.
#[test]
fn a_longer_timeout_is_a_longer_wait_for_capacity() {
    let server = Server::start(Kind::Redis);
    let store = stores::from_url(&server.url("timeout=100ms&connect_timeout=100ms&failures=1000000")).unwrap();
    let cache = Cache::builder(store).build();
    let patient = cache.timeout(PATIENCE);
    patient.blocking().set_raw(&key(0), value(&key(0)), TTL).unwrap();
    current_thread().block_on(async {
        patient.get_raw(&key(0)).await.unwrap();
        server.pause();
        let read = |cache: Cache| tokio::spawn(async move { cache.get_raw(&key(0)).await });
        let waiting: Vec<_> = (0..TASKS).map(|_| read(patient.clone())).collect();
        let failure = read(cache.clone()).await.unwrap().unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::Full, "{failure}");
        server.resume();
        for task in waiting {
            assert_eq!(task.await.unwrap().unwrap().as_deref(), Some(value(&key(0)).as_bytes()));
        }
    });
}

/// Half of the requests read, and half of them increment.
fn many_requests_outlast_a_short_pause(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache(&server, "20s");
    current_thread().block_on(async {
        let requests = Requests::begin(&server, &cache).await;
        server.resume();
        let results = requests.end().await;
        println!("{kind:?}: {results:?}");
        assert!(results.read > 0 && results.counted > 0, "{kind:?}: no request succeeded: {results:?}");
        let counted = cache.counter("counter").await.unwrap().unwrap_or(0);
        let counted = usize::try_from(counted).expect("a count");
        assert!(counted >= results.counted, "{kind:?}: {counted} counted: {results:?}");
        assert!(counted <= TASKS / 2, "{kind:?}: {counted} counted: {results:?}");
        assert_works(&cache).await;
    });
}

/// The pause is longer than the timeout: the server resumes after each request has failed.
fn many_requests_fail_in_a_long_pause(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache(&server, "500ms");
    current_thread().block_on(async {
        let requests = Requests::begin(&server, &cache).await;
        let results = requests.end().await;
        println!("{kind:?}: {results:?}");
        assert_eq!((results.read, results.counted), (0, 0), "{kind:?}: successes on a paused server: {results:?}");
        server.resume();
        // The server may still have the requests from the pause to process.
        let works = async {
            while cache.get_raw(&key(0)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, works).await.expect("timed out waiting until the store works again");
        assert_works(&cache).await;
    });
}

fn cache(server: &Server, timeout: &str) -> Cache {
    let store = stores::from_url(&server.url(&format!("timeout={timeout}&{NO_BREAKER}"))).unwrap();
    let cache = Cache::builder(store).build();
    for number in 0..KEYS {
        cache.blocking().set_raw(&key(number), value(&key(number)), TTL).unwrap();
    }
    cache
}

async fn assert_works(cache: &Cache) {
    for number in 0..KEYS {
        let got = cache.get_raw(&key(number)).await.unwrap();
        assert_eq!(got.as_deref(), Some(value(&key(number)).as_bytes()));
    }
}

/// Requests that were all started while the server was paused.
struct Requests {
    tasks: Vec<tokio::task::JoinHandle<Result<Done>>>,
}

enum Done {
    Read,
    Counted,
}

#[derive(Debug, Default)]
struct Results {
    read: usize,
    counted: usize,
    failed: usize,
    /// One of the failures.
    failure: String,
}

impl Requests {
    async fn begin(server: &Server, cache: &Cache) -> Requests {
        // Opens a connection before the pause.
        assert_works(cache).await;
        server.pause();
        let started = Arc::new(AtomicUsize::new(0));
        let request = |number: usize| {
            let (cache, started) = (cache.clone(), Arc::clone(&started));
            async move {
                started.fetch_add(1, Ordering::SeqCst);
                if number.is_multiple_of(2) {
                    return cache.increment("counter", 1, TTL).await.map(|_| Done::Counted);
                }
                let got = cache.get_raw(&key(number)).await?;
                assert_eq!(got.as_deref(), Some(value(&key(number)).as_bytes()), "asked for {}", key(number));
                Ok(Done::Read)
            }
        };
        let tasks = (0..TASKS).map(|number| tokio::spawn(request(number))).collect();
        while started.load(Ordering::SeqCst) < TASKS {
            tokio::task::yield_now().await;
        }
        Requests { tasks }
    }

    /// Waits until every request has ended.
    async fn end(self) -> Results {
        let mut results = Results::default();
        let each = async {
            for task in self.tasks {
                match task.await.expect("a right answer") {
                    Ok(Done::Read) => results.read += 1,
                    Ok(Done::Counted) => results.counted += 1,
                    Err(error) => {
                        assert!(error.is_transient(), "{error:?}");
                        results.failed += 1;
                        results.failure = format!("{error:#}");
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, each).await.expect("timed out waiting until each request has ended");
        results
    }
}

fn key(number: usize) -> String {
    format!("key:{}", number % KEYS)
}

fn value(key: &str) -> String {
    format!("the value of {key}")
}
