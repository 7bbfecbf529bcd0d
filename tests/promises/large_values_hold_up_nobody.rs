//! Tasks read small values beside tasks that read large ones. No read fails, no small read waits for the large ones to
//! end, and memory stays in proportion to the values that are being read. The blocking API in the same run is the
//! reference.
//!
//! `STRESS=1` reads values of 50 MiB.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prefork_cache::{Cache, Result};

use crate::callers::{HOUR, PATIENT, cache_on, current_thread_runtime};
use crate::harness::{Scenario, count, with_each_server};
use support::forks::fork;
use support::memory::{peak, resident};
use support::servers::{Kind, Server};

pub(crate) fn scenarios() -> Vec<Scenario> {
    with_each_server("small_reads_beside_large_ones", small_reads_beside_large_ones)
}

const MIB: usize = 1 << 20;
const LARGE: usize = 4;
const SMALL: usize = 10;
/// How often each large value is read.
const READS: usize = 3;
/// How often the measurement is tried: another process may have had the processor during a wait.
const ROUNDS: usize = 3;
/// The highest permitted ratio of the worst waits, tokio to blocking. The aim is 2; this allows for busy machines.
const MOST: f64 = 10.0;

fn small_reads_beside_large_ones(kind: Kind) {
    let size = count(16, 50) * MIB;
    let (extra, more) = match kind {
        Kind::Redis => (vec![], ""),
        // Memcached assembles a large item from chunks: with little memory, several do not fit at once.
        Kind::Memcached => (vec!["-I", "64m", "-m", "1024"], "&max_value=67108864"),
    };
    let server = Server::with(kind, &extra);
    // In tokio the default, which does not end the read of a large value while bytes arrive; more on busy machines.
    let timeout = count(5, 1);
    let cache = cache_on(&server, &format!("timeout={timeout}s&connect_timeout=20s{more}"));
    let patient = cache_on(&server, &format!("{PATIENT}{more}"));
    // In a child, so that the memory for writing them is not counted.
    fork(|| {
        for number in 0..LARGE {
            patient.blocking().set_raw(&large(number), vec![b'x'; size], HOUR).expect("room for a large value");
        }
        for number in 0..SMALL {
            patient.blocking().set_raw(&small(number), small(number), HOUR).expect("room for a small value");
        }
    })
    .join();

    let before = resident();
    let mut tokio = in_tasks(&cache, size);
    let grown = peak() - before;
    let most = LARGE * size * 3 / 2 + 64 * MIB;
    println!("{kind:?}: in tokio {} MiB more than before, at most {} MiB allowed", grown / MIB, most / MIB);
    let mut rounds = 0;
    loop {
        let blocking = in_threads(&patient, size);
        let ratio = tokio.worst.as_secs_f64() / blocking.worst.as_secs_f64();
        println!(
            "{kind:?}: small reads in tokio: {tokio:?}; blocking: {blocking:?}; ratio of the worst waits {ratio:.2}"
        );
        assert!(tokio.failed.is_empty(), "{kind:?}, tokio: {tokio:?}");
        assert!(blocking.failed.is_empty(), "{kind:?}, blocking: {blocking:?}");
        rounds += 1;
        if ratio <= MOST {
            break;
        }
        assert!(rounds < ROUNDS, "{kind:?}: the worst wait is {ratio:.2} times that of the blocking API");
        tokio = in_tasks(&cache, size);
    }
    assert!(grown <= most, "{kind:?}: {grown} bytes more than before, at most {most} allowed");
}

fn large(number: usize) -> String {
    format!("large:{number}")
}

/// A small value's key, which is also its value.
fn small(number: usize) -> String {
    format!("small:{number}")
}

/// The results of a round.
#[derive(Default)]
struct Results {
    small_reads: usize,
    /// The longest time that a small read took.
    worst: Duration,
    failed: Vec<String>,
}

impl std::fmt::Debug for Results {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Results { small_reads, worst, failed } = self;
        write!(f, "{small_reads} reads, the worst {worst:.2?}, {} failed {:?}", failed.len(), failed.first())
    }
}

impl Results {
    fn sum(all: impl Iterator<Item = Results>) -> Results {
        all.fold(Results::default(), |sum, one| Results {
            small_reads: sum.small_reads + one.small_reads,
            worst: sum.worst.max(one.worst),
            failed: [sum.failed, one.failed].concat(),
        })
    }

    fn record_large(&mut self, got: Result<Option<Bytes>>, size: usize) {
        match got {
            Ok(Some(value)) if value.len() == size => {}
            Ok(other) => self.failed.push(format!("a large value is {:?} long", other.map(|value| value.len()))),
            Err(error) => self.failed.push(format!("large: {error:#}")),
        }
    }

    fn record_small(&mut self, number: usize, begun: Instant, got: Result<Option<Bytes>>) {
        self.small_reads += 1;
        self.worst = self.worst.max(begun.elapsed());
        match got {
            Ok(Some(value)) if value == small(number) => {}
            Ok(other) => self.failed.push(format!("asked for {}, got {other:?}", small(number))),
            Err(error) => self.failed.push(format!("small: {error:#}")),
        }
    }
}

/// Counts the readers of large values that are still running, even if one panics.
struct Reading(Arc<AtomicUsize>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn in_tasks(cache: &Cache, size: usize) -> Results {
    let reading = Arc::new(AtomicUsize::new(LARGE));
    current_thread_runtime().block_on(async {
        let large_ones = (0..LARGE).map(|number| {
            let (cache, reading) = (cache.clone(), Reading(Arc::clone(&reading)));
            tokio::spawn(async move {
                let _reading = reading;
                let mut results = Results::default();
                for _ in 0..READS {
                    results.record_large(cache.get_raw(&large(number)).await, size);
                }
                results
            })
        });
        let small_ones = (0..SMALL).map(|number| {
            let (cache, reading) = (cache.clone(), Arc::clone(&reading));
            tokio::spawn(async move {
                let mut results = Results::default();
                while reading.load(Ordering::SeqCst) > 0 {
                    let begun = Instant::now();
                    results.record_small(number, begun, cache.get_raw(&small(number)).await);
                }
                results
            })
        });
        let tasks: Vec<_> = large_ones.chain(small_ones).collect();
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.expect("no panic"));
        }
        Results::sum(all.into_iter())
    })
}

fn in_threads(cache: &Cache, size: usize) -> Results {
    let reading = Arc::new(AtomicUsize::new(LARGE));
    thread::scope(|scope| {
        let mut all = Vec::new();
        for number in 0..LARGE {
            let reading = Reading(Arc::clone(&reading));
            all.push(scope.spawn(move || {
                let _reading = reading;
                let mut results = Results::default();
                for _ in 0..READS {
                    results.record_large(cache.blocking().get_raw(&large(number)), size);
                }
                results
            }));
        }
        for number in 0..SMALL {
            let reading = Arc::clone(&reading);
            all.push(scope.spawn(move || {
                let mut results = Results::default();
                while reading.load(Ordering::SeqCst) > 0 {
                    let begun = Instant::now();
                    results.record_small(number, begun, cache.blocking().get_raw(&small(number)));
                }
                results
            }));
        }
        Results::sum(all.into_iter().map(|thread| thread.join().expect("no panic")))
    })
}
