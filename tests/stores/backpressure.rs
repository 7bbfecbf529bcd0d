//! Many more requests at once than a server answers: 20,000 tasks while it is paused. Each ends, with its answer or
//! with a transient error; nothing that was reported as done is lost; and afterwards the store works as before.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prefork_cache::{Cache, Result, stores};

use crate::conformance::current_thread;
use support::servers::{Kind, Server};
use support::wait::PATIENCE;

const TTL: Duration = Duration::from_secs(3600);
const TASKS: usize = 20_000;
const KEYS: usize = 100;
/// The breaker is another subject.
const UNBROKEN: &str = "connect_timeout=20s&failures=1000000&retry_after=1ms";

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

/// Who has been answered asks again at once, and does not take the place of those that wait.
#[test]
fn everyone_has_a_turn() {
    let server = Server::start(Kind::Redis);
    let cache = cache(&server, "20s");
    let ask = |cache: Cache| async move {
        for number in 0..5 {
            cache.get_raw(&key(number)).await?;
        }
        Ok(Instant::now())
    };
    current_thread().block_on(async {
        let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(ask(cache.clone()))).collect();
        let begun = Instant::now();
        let mut ends = Vec::new();
        for task in tasks {
            let end: Result<Instant> = task.await.unwrap();
            ends.push(end.unwrap() - begun);
        }
        let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
        assert!(*last < 2 * *first, "the first had five answers after {first:?}, the last after {last:?}");
    });
}

/// Half of them read, and half of them count.
fn many_requests_outlast_a_short_pause(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache(&server, "20s");
    current_thread().block_on(async {
        let asked = Asked::begin(&server, &cache).await;
        server.resume();
        let figures = asked.end().await;
        println!("{kind:?}: {figures:?}");
        assert!(figures.read > 0 && figures.counted > 0, "{kind:?}: nothing was answered: {figures:?}");
        let counted = cache.counter("counter").await.unwrap().unwrap_or(0);
        let counted = usize::try_from(counted).expect("a count");
        assert!(counted >= figures.counted, "{kind:?}: {counted} counted: {figures:?}");
        assert!(counted <= TASKS / 2, "{kind:?}: {counted} counted: {figures:?}");
        assert_works(&cache).await;
    });
}

/// Longer than the timeout: the server goes on when each has failed.
fn many_requests_fail_in_a_long_pause(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache(&server, "500ms");
    current_thread().block_on(async {
        let asked = Asked::begin(&server, &cache).await;
        let figures = asked.end().await;
        println!("{kind:?}: {figures:?}");
        assert_eq!(
            (figures.read, figures.counted),
            (0, 0),
            "{kind:?}: answered by a server that is paused: {figures:?}"
        );
        server.resume();
        // What was under way at the pause may still take the server some time.
        let works = async {
            while cache.get_raw(&key(0)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, works).await.expect("waited in vain until the store works again");
        assert_works(&cache).await;
    });
}

fn cache(server: &Server, timeout: &str) -> Cache {
    let store = stores::from_url(&server.url(&format!("timeout={timeout}&{UNBROKEN}"))).unwrap();
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

/// Requests that were all made while the server was paused.
struct Asked {
    tasks: Vec<tokio::task::JoinHandle<Result<Done>>>,
}

enum Done {
    Read,
    Counted,
}

#[derive(Debug, Default)]
struct Figures {
    read: usize,
    counted: usize,
    failed: usize,
    /// One of the failures.
    failure: String,
}

impl Asked {
    async fn begin(server: &Server, cache: &Cache) -> Asked {
        // There is a connection, and then nothing answers.
        assert_works(cache).await;
        server.pause();
        let begun = Arc::new(AtomicUsize::new(0));
        let ask = |number: usize| {
            let (cache, begun) = (cache.clone(), Arc::clone(&begun));
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                if number.is_multiple_of(2) {
                    return cache.increment("counter", 1, TTL).await.map(|_| Done::Counted);
                }
                let got = cache.get_raw(&key(number)).await?;
                assert_eq!(got.as_deref(), Some(value(&key(number)).as_bytes()), "asked for {}", key(number));
                Ok(Done::Read)
            }
        };
        let tasks = (0..TASKS).map(|number| tokio::spawn(ask(number))).collect();
        while begun.load(Ordering::SeqCst) < TASKS {
            tokio::task::yield_now().await;
        }
        Asked { tasks }
    }

    /// Waits until each has ended.
    async fn end(self) -> Figures {
        let mut figures = Figures::default();
        let each = async {
            for task in self.tasks {
                match task.await.expect("a right answer") {
                    Ok(Done::Read) => figures.read += 1,
                    Ok(Done::Counted) => figures.counted += 1,
                    Err(error) => {
                        assert!(error.is_transient(), "{error:?}");
                        figures.failed += 1;
                        figures.failure = format!("{error:#}");
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, each).await.expect("waited in vain until each request has ended");
        figures
    }
}

fn key(number: usize) -> String {
    format!("key:{}", number % KEYS)
}

fn value(key: &str) -> String {
    format!("the value of {key}")
}
