//! Whether crossbeam's collector of garbage, which every moka of a process shares, still collects.
//!
//! It frees nothing that a pinned thread could still see. A thread that was pinned at the fork, moka's or a stranger's
//! (rayon's, say), does not exist in the child and never unpins: from then on nothing is freed, and memory grows without
//! bound. So a child has the collector drop a marker before it relies on it.
//!
//! # Busy or stalled
//!
//! The collector drops in the order in which things were given up, eight bags of 64 at each flush, so a marker behind a
//! long backlog takes thousands of flushes. A backlog is no reason to give up: what tells a stalled collector is that
//! flush after flush drops nothing. A flush that has dropped something has dropped an entry of ours, or the marker, or
//! has taken its time: with nothing to drop it takes some 35 ns, and 6 us to drop what eight bags hold. How long is
//! long is measured on a collector of the probe's own, which has nothing to drop.
//!
//! Another thread of this process may be pinned for a while, too. Where there is one, a collector counts as stalled only
//! after some time.
//!
//! A child that has not found out in [`BUDGET`] goes on, undecided: each later write flushes once, until there is a
//! [`Verdict`]. What was dropped before a foreign thread was pinned may be a long backlog too, so that verdict may be a bad
//! one. A stalled collector stays so in all children of its process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::entry;
use crate::lifecycle::{FIRST_GENERATION, ProcessLocal, generation};

/// How much processor time a child spends at once.
const BUDGET: Duration = Duration::from_millis(1);

/// So many flushes in a row that drop nothing tell a stalled collector.
const FRUITLESS: u32 = 64;

/// How long they take at least in a process with other threads, which may be pinned.
const LONG: Duration = Duration::from_millis(20);

/// A flush that takes so many times longer than one with nothing to drop has dropped something.
const BUSY: u32 = 20;

/// How many flushes there are to a verdict at most: no backlog takes as many.
const MOST: u32 = 200_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Alive,
    Undecided,
    Stalled,
}

/// The last generation that came to a verdict, doubled; odd if that was a bad one.
static KNOWN: AtomicU64 = AtomicU64::new(0);

static PROBE: ProcessLocal<Probe> = ProcessLocal::new();

/// What this process knows so far. A load and a compare.
#[inline]
pub(super) fn verdict() -> Verdict {
    let generation = generation();
    let known = KNOWN.load(Ordering::Acquire);
    if !known.is_multiple_of(2) {
        Verdict::Stalled
    } else if generation == FIRST_GENERATION || known / 2 == generation {
        Verdict::Alive
    } else {
        Verdict::Undecided
    }
}

/// Looks for [`BUDGET`] at most.
pub(super) fn examine() -> Verdict {
    let deadline = processor_time() + BUDGET;
    loop {
        let verdict = look_on();
        // With each flush: one that drops what a parent's threads have given up copies pages, and takes its time.
        if verdict != Verdict::Undecided || processor_time() > deadline {
            return verdict;
        }
        if PROBE.get_or_init(Probe::begin).fruitless.load(Ordering::Relaxed) >= FRUITLESS {
            // Another thread is pinned, perhaps, and waits for the processor.
            thread::yield_now();
        }
    }
}

/// Looks once, unless there is a verdict.
pub(super) fn look_on() -> Verdict {
    let before = verdict();
    // A caller that is pinned itself keeps the collector from moving on.
    if before != Verdict::Undecided || crossbeam_epoch::is_pinned() {
        return before;
    }
    let generation = generation();
    if let Some(is_alive) = PROBE.get_or_init(Probe::begin).flush() {
        KNOWN.store(generation * 2 + u64::from(!is_alive), Ordering::Release);
    }
    verdict()
}

#[derive(Debug)]
struct Probe {
    /// Whether the marker was dropped.
    is_dropped: Arc<AtomicBool>,
    flushes: AtomicU32,
    /// The last flushes that have dropped nothing, and since when.
    fruitless: AtomicU32,
    fruitless_since: AtomicU64,
    begun: Instant,
    /// What takes longer was no flush without anything to drop.
    idle: Duration,
}

impl Probe {
    fn begin() -> Probe {
        let is_dropped = Arc::new(AtomicBool::new(false));
        let marker = Arc::clone(&is_dropped);
        crossbeam_epoch::pin().defer(move || marker.store(true, Ordering::Release));
        Probe {
            is_dropped,
            flushes: AtomicU32::new(0),
            fruitless: AtomicU32::new(0),
            fruitless_since: AtomicU64::new(0),
            begun: Instant::now(),
            idle: idle_flush() * BUSY,
        }
    }

    /// Whether the collector is alive, if that is known now.
    fn flush(&self) -> Option<bool> {
        let dropped = entry::dropped_by_this_thread();
        let started = Instant::now();
        crossbeam_epoch::pin().flush();
        let took = started.elapsed();
        if self.is_dropped.load(Ordering::Acquire) {
            return Some(true);
        }
        if self.flushes.fetch_add(1, Ordering::Relaxed) > MOST {
            return Some(false);
        }
        if entry::dropped_by_this_thread() != dropped {
            self.fruitless.store(0, Ordering::Relaxed);
            return None;
        }
        if took > self.idle {
            return None;
        }
        let since_begin = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let fruitless = self.fruitless.fetch_add(1, Ordering::Relaxed) + 1;
        if fruitless == 1 {
            self.fruitless_since.store(since_begin, Ordering::Relaxed);
        }
        let lasted = Duration::from_nanos(since_begin - self.fruitless_since.load(Ordering::Relaxed).min(since_begin));
        let is_stalled =
            fruitless >= FRUITLESS && (lasted > LONG || (fruitless.is_multiple_of(FRUITLESS) && is_alone()));
        is_stalled.then_some(false)
    }
}

/// How long a flush takes that has nothing to drop.
fn idle_flush() -> Duration {
    let participant = crossbeam_epoch::Collector::new().register();
    let flush = |_| {
        let started = Instant::now();
        participant.pin().flush();
        started.elapsed()
    };
    (0..16).map(flush).min().expect("some of them")
}

/// Whether this process has a single thread, as far as can be told.
fn is_alone() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.take(2).count() == 1)
}

/// Of this thread. Where there is no such clock, none has passed.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::Probe;

    #[test]
    fn a_process_whose_threads_are_alive_collects() {
        let probe = Probe::begin();
        let found = (0..10_000).find_map(|_| {
            std::thread::yield_now();
            probe.flush()
        });
        assert_eq!(found, Some(true));
    }
}
