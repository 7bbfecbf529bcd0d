//! Detects whether crossbeam's garbage collector, which all moka caches of a process share, still works after a fork.
//!
//! The collector frees nothing that a pinned thread could still access. A thread that was pinned at the fork, in moka
//! or in another library (rayon, say), does not exist in the child and never unpins. From then on nothing is freed,
//! and memory grows without bound. So before a child relies on the collector, it defers the drop of a marker and
//! checks that the marker is dropped.
//!
//! # Busy or stalled
//!
//! The collector drops garbage in the order in which it was deferred, eight bags of 64 objects at each flush, so a
//! marker behind a long backlog needs thousands of flushes. A backlog alone does not mean that the collector has
//! stalled. It has stalled if many flushes in a row drop nothing. A flush has dropped something if it has dropped an
//! entry of this crate or the marker, or if it has taken long: a flush takes about 35 ns if there is nothing to drop,
//! and 6 us to drop eight bags. The threshold is measured on a separate collector of the probe, which has nothing to
//! drop.
//!
//! | the flush | counts as | the verdict |
//! | --- | --- | --- |
//! | has dropped the marker | | alive |
//! | has dropped an entry | progress; the fruitless flushes start at 0 again | undecided |
//! | has taken long | neither | undecided |
//! | nothing of this, and fewer than 64 are fruitless in a row | fruitless | undecided |
//! | nothing of this, at least 64 in a row, for more than 20 ms or in a process with one thread | fruitless | stalled |
//! | has dropped no marker, after more than 200,000 others | | stalled |
//!
//! Another thread of this process may be pinned for a while. In a process with other threads, the collector therefore
//! counts as stalled only after [`MIN_STALL`].
//!
//! A child without a verdict after [`BUDGET`] continues undecided: each later write flushes once, until there is a
//! [`Verdict`]. That verdict may still be that the collector has stalled, since the backlog may have been deferred
//! before the pinned thread was pinned. A stalled collector stays stalled in all children of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::entry;
use crate::lifecycle::{FIRST_GENERATION, ProcessLocal, generation};

/// The processor time of one examination.
const BUDGET: Duration = Duration::from_millis(1);

/// The number of fruitless flushes in a row after which the collector counts as stalled.
const MAX_FRUITLESS: u32 = 64;

/// The time that these flushes must span in a process with other threads, which may be pinned.
const MIN_STALL: Duration = Duration::from_millis(20);

/// A flush has dropped something if it takes this many times as long as a flush with nothing to drop.
const BUSY_FACTOR: u32 = 20;

/// The number of flushes after which the collector counts as stalled in any case. No backlog needs as many.
const MAX_FLUSHES: u32 = 200_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Alive,
    Undecided,
    Stalled,
}

/// Twice the last generation with a verdict, plus one if the verdict was [`Verdict::Stalled`].
static KNOWN: AtomicU64 = AtomicU64::new(0);

static PROBE: ProcessLocal<Probe> = ProcessLocal::new();

/// Returns the verdict of this process so far. A load and a compare.
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

/// Flushes until there is a verdict, for at most [`BUDGET`].
pub(super) fn examine() -> Verdict {
    let deadline = processor_time() + BUDGET;
    loop {
        let verdict = examine_once();
        // Checked after each flush: one that drops garbage of the parent's threads copies pages, which is slow.
        if verdict != Verdict::Undecided || processor_time() > deadline {
            return verdict;
        }
        if PROBE.get_or_init(Probe::begin).fruitless.load(Ordering::Relaxed) >= MAX_FRUITLESS {
            // Perhaps another thread is pinned and waits for the processor.
            thread::yield_now();
        }
    }
}

/// Flushes once, unless there is a verdict.
pub(super) fn examine_once() -> Verdict {
    let before = verdict();
    // A caller that is pinned itself keeps the collector from advancing.
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
    /// The number of fruitless flushes in a row.
    fruitless: AtomicU32,
    /// When the first of them was, in nanoseconds since the probe began.
    fruitless_since: AtomicU64,
    begun: Instant,
    /// A flush that takes longer has dropped something.
    longest_idle: Duration,
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
            longest_idle: idle_flush_time() * BUSY_FACTOR,
        }
    }

    /// Flushes once. Returns whether the collector is alive, if that is known now.
    fn flush(&self) -> Option<bool> {
        let dropped = entry::dropped_by_this_thread();
        let started = Instant::now();
        crossbeam_epoch::pin().flush();
        let took = started.elapsed();
        if self.is_dropped.load(Ordering::Acquire) {
            return Some(true);
        }
        if self.flushes.fetch_add(1, Ordering::Relaxed) > MAX_FLUSHES {
            return Some(false);
        }
        if entry::dropped_by_this_thread() != dropped {
            self.fruitless.store(0, Ordering::Relaxed);
            return None;
        }
        if took > self.longest_idle {
            return None;
        }
        let since_begin = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let fruitless = self.fruitless.fetch_add(1, Ordering::Relaxed) + 1;
        if fruitless == 1 {
            self.fruitless_since.store(since_begin, Ordering::Relaxed);
        }
        let lasted = Duration::from_nanos(since_begin - self.fruitless_since.load(Ordering::Relaxed).min(since_begin));
        let is_stalled = fruitless >= MAX_FRUITLESS
            && (lasted > MIN_STALL || (fruitless.is_multiple_of(MAX_FRUITLESS) && is_single_threaded()));
        is_stalled.then_some(false)
    }
}

/// Measures how long a flush takes if there is nothing to drop.
fn idle_flush_time() -> Duration {
    let participant = crossbeam_epoch::Collector::new().register();
    let flush = |_| {
        let started = Instant::now();
        participant.pin().flush();
        started.elapsed()
    };
    (0..16).map(flush).min().expect("there are 16 flushes")
}

/// Returns whether this process is known to have a single thread.
fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.take(2).count() == 1)
}

/// Returns the processor time of this thread, or zero if there is no such clock.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::Probe;

    #[test]
    fn the_collector_of_a_process_without_a_vanished_thread_is_alive() {
        let probe = Probe::begin();
        let found = (0..10_000).find_map(|_| {
            std::thread::yield_now();
            probe.flush()
        });
        assert_eq!(found, Some(true));
    }
}
