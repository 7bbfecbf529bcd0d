//! The gate: a fork waits at it until no thread is in the middle of a short section.
//!
//! Sections that a fork must not split run between [`enter`] and the drop of its [`Pass`]: an operation of moka,
//! opening or closing a socket. They consist of system calls that do not wait, moka's own work and atomics. They never
//! run a user's code, dial, or wait for another thread.
//!
//! # States
//!
//! The gate, by its count of closers:
//!
//! | state | closers | next |
//! | --- | --- | --- |
//! | open | 0 | *closed*, when a fork's *prepare* handler runs ([`close`]) |
//! | closed | 1 or more | *open* in the parent, when the last closer counts itself out and so ends the era ([`open`]); *overdue*; *open* and empty in the child ([`reopen`]) |
//! | overdue: a thread has waited for [`ENTER_TIMEOUT`] at the closed gate | 1 or more, and [`OVERDUE`] is the era | *open*, as *closed* |
//!
//! A thread:
//!
//! | state | next |
//! | --- | --- |
//! | outside | *inside*, by [`enter`] at an open gate; *waiting* at a closed one; *intruder* at a closed one if this thread is forking |
//! | waiting | tries again when the gate opens; *intruder* after [`ENTER_TIMEOUT`], or at once if the era is overdue |
//! | inside, or intruder | *outside*, when its last [`Pass`] is dropped |
//!
//! What a child finds ([`reopen`]):
//!
//! | at the fork | sections |
//! | --- | --- |
//! | an intruder was inside | interrupted |
//! | this thread prepared the fork, and all threads were outside | intact |
//! | this thread prepared the fork, and the wait timed out, or this thread was inside | interrupted |
//! | the fork bypassed the handlers; no thread ever entered, or only this one, and it is outside | intact |
//! | the fork bypassed the handlers; anything else | interrupted |
//!
//! # How it closes
//!
//! A thread that enters counts itself in on one of several stripes and then reads the count of closers. The fork's
//! *prepare* handler counts itself in as a closer and then reads the stripes. Both are sequentially consistent, so at
//! least one of them sees the other: a section either finishes before the fork or has not begun. The wait has a
//! timeout. After it the fork goes on, and the child knows that it cannot trust the data that the sections guard.
//!
//! Closers are *counted*: the C library overlaps the handlers of forks on several threads, and with a plain flag a
//! child could be forked after another thread's fork had reopened the gate. No lock is held through a fork. The
//! counters are on the wiped page, so a child starts with an open, empty gate even if no handler ran. Each counter
//! records the generation that it counts for: a signal handler may fork between any two instructions here, and the
//! interrupted code must not count in or out in the child.
//!
//! A thread that is inside may enter again (a signal handler, a store within a store). If the forking thread itself is
//! inside, the section is incomplete in the child, and the child finds that out.
//!
//! # Threads that do not wait
//!
//! The host's own *prepare* handlers mostly run after ours, at a closed gate (they were registered first). They may
//! enter the gate, and they may wait for a lock whose holder wants to enter it. So the forking thread enters at once,
//! and every other thread waits with a timeout. Both enter as *intruders*, counted in memory that a child inherits: if
//! a fork finds an intruder inside, its child starts cold. Once a thread has waited for the full timeout, others do not
//! wait either until the gate has opened. Each period in which the gate is closed is an *era*. The last closer ends the
//! era and counts itself out in one step, so what a thread finds out about one era never applies to the next.
//!
//! # What the child learns
//!
//! *Prepare* leaves its result with the forking thread, the only thread that exists in the child. [`reopen`] turns it
//! into the number of the last generation that began with an interrupted section. Data built before that generation is
//! not trusted ([`intact_since`]). After a fork that bypassed the handlers, no thread has waited: data is trusted only
//! if no thread of that process ever entered the gate, or a single one did, which is this one, outside.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::generation::{generation, page};
use super::{FIRST_GENERATION, thread_stripe, thread_token};

/// How long a fork waits for sections to end.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a section waits for forks to end: longer than the kernel takes to copy a large process.
const ENTER_TIMEOUT: Duration = Duration::from_millis(500);

const STRIPES: usize = 32;

/// The counters of the gate, which are on the wiped page.
pub(super) struct Counters {
    closers: Counter,
    stripes: [Counter; STRIPES],
}

impl Counters {
    pub(super) const fn new() -> Counters {
        Counters { closers: Counter::new(), stripes: [const { Counter::new() }; STRIPES] }
    }

    /// Resets the gate to open and empty, for `generation`.
    pub(super) fn reset(&self, generation: u64) {
        self.closers.reset(generation);
        for stripe in &self.stripes {
            stripe.reset(generation);
        }
    }

    fn inside(&self) -> u16 {
        self.stripes.iter().map(Counter::count).fold(0, u16::wrapping_add)
    }
}

/// A count for one generation, on a cache line of its own (a pair of them, since they are fetched in pairs). The upper
/// 32 bits hold the lower half of the generation, the next 16 the era, the lowest 16 the count, offset by [`ZERO`].
#[repr(align(128))]
struct Counter(AtomicU64);

/// In the middle of the range, so that a count that is undone right away never overflows into the bits above.
const ZERO: u64 = 1 << 15;

/// A value of a counter.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    fn count(self) -> u16 {
        // A wiped counter counts zero.
        if self.0 == 0 { 0 } else { (self.0 as u16).wrapping_sub(ZERO as u16) }
    }

    /// Returns the era, together with the generation.
    fn era(self) -> u64 {
        self.0 >> 16
    }

    /// Counts one closer less. The last one ends the era.
    fn minus_closer(self) -> Word {
        let one_less = self.0 - 1;
        if Word(one_less).count() > 0 {
            return Word(one_less);
        }
        let next_era = ((one_less >> 16) as u16).wrapping_add(1);
        Word(one_less & !(0xFFFF << 16) | u64::from(next_era) << 16)
    }
}

impl Counter {
    const fn new() -> Counter {
        Counter(AtomicU64::new(Counter::zero_in(FIRST_GENERATION)))
    }

    const fn zero_in(generation: u64) -> u64 {
        generation << 32 | ZERO
    }

    fn reset(&self, generation: u64) {
        self.0.store(Counter::zero_in(generation), Ordering::SeqCst);
    }

    /// Returns whether the counter is for `generation`. If not, nothing is counted.
    #[inline]
    fn count_in(&self, generation: u64) -> bool {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        let counted = is_for(before, generation);
        if !counted {
            self.undo(before, |word| word - 1);
        }
        counted
    }

    /// Does nothing if the counter is for another generation.
    #[inline]
    fn count_out(&self, generation: u64) {
        let before = self.0.fetch_sub(1, Ordering::SeqCst);
        if !is_for(before, generation) {
            self.undo(before, |word| word + 1);
        }
    }

    /// Undoes a count made in a child that a signal handler has just forked. A counter that was reset since needs no
    /// correction.
    #[cold]
    fn undo(&self, before: u64, correct: impl Fn(u64) -> u64) {
        let same = |word: u64| word >> 32 == before >> 32;
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |word| same(word).then(|| correct(word)));
    }

    /// Counts a closer out, unless it was counted for another generation.
    fn count_closer_out(&self, generation: u64) {
        let minus_one = |word| is_for(word, generation).then(|| Word(word).minus_closer().0);
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::Relaxed, minus_one);
    }

    fn word(&self) -> Word {
        Word(self.0.load(Ordering::SeqCst))
    }

    fn count(&self) -> u16 {
        self.word().count()
    }
}

fn is_for(word: u64, generation: u64) -> bool {
    word >> 32 == generation & u64::from(u32::MAX)
}

/// The forks that a thread has prepared and that have not ended.
#[derive(Clone, Copy)]
struct Closing {
    generation: u64,
    /// More than one if a signal handler, or a handler of the host, forks in the middle of a fork.
    forks: u32,
    /// Whether all threads were outside.
    all_outside: bool,
}

const NOT_CLOSING: Closing = Closing { generation: 0, forks: 0, all_outside: false };

thread_local! {
    /// How often this thread is inside, and the generation in which it entered.
    static INSIDE: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
    /// The result of *prepare*, for the child.
    static CLOSING: Cell<Closing> = const { Cell::new(NOT_CLOSING) };
}

/// The threads inside that did not wait for a fork. Not on the wiped page, because the child must see them.
static INTRUDERS: Counter = Counter::new();

/// The era in which a thread has waited for [`ENTER_TIMEOUT`]. Until it ends, other threads do not wait.
static OVERDUE: AtomicU64 = AtomicU64::new(0);

/// The token of the only thread that ever entered in this generation; 0 for none, [`SEVERAL`] for more than one.
static SOLE_THREAD: AtomicUsize = AtomicUsize::new(0);
const SEVERAL: usize = usize::MAX;

/// The last generation that began with an interrupted section, and the index of the reason.
static INTERRUPTED_IN: AtomicU64 = AtomicU64::new(0);
static INTERRUPTION: AtomicU8 = AtomicU8::new(0);

const REASONS: [&str; 2] = [
    "another thread was inside the store at the fork",
    "the fork bypassed the fork handlers of a process with threads",
];

/// The guard of a section. It stays with its thread.
#[must_use]
pub(crate) struct Pass {
    generation: u64,
    /// Whether it was granted without waiting for a fork. Kept here and not per thread, since a signal handler may
    /// enter at any point.
    intruding: bool,
    not_send: PhantomData<*const ()>,
}

/// Enters a section. Waits first if a fork is in progress.
#[inline]
pub(crate) fn enter() -> Pass {
    loop {
        let generation = generation();
        let (entered_in, depth) = INSIDE.get();
        if depth > 0 && entered_in == generation {
            INSIDE.set((generation, depth + 1));
            return Pass { generation, intruding: false, not_send: PhantomData };
        }
        record_thread();
        let gate = &page().gate;
        let stripe = own_stripe(gate);
        if !stripe.count_in(generation) {
            // A signal handler has just forked, and this is the child.
            continue;
        }
        let intruding = gate.closers.count() != 0;
        if intruding && !intrude(gate, stripe, generation) {
            continue;
        }
        INSIDE.set((generation, 1));
        #[cfg(feature = "__injection")]
        crate::injection::reach("gate");
        return Pass { generation, intruding, not_send: PhantomData };
    }
}

/// Waits at a closed gate. After the timeout, counts this thread as an intruder. Returns whether it is inside.
#[cold]
fn intrude(gate: &Counters, stripe: &Counter, generation: u64) -> bool {
    let closing = CLOSING.get();
    let forking = closing.forks > 0 && closing.generation == generation;
    if !forking {
        stripe.count_out(generation);
        if is_open_in_time(gate) || !stripe.count_in(generation) {
            return false;
        }
    }
    let counted = INTRUDERS.count_in(generation);
    if !counted {
        stripe.count_out(generation);
    }
    counted
}

/// Returns whether this thread is inside.
pub(crate) fn is_inside() -> bool {
    let (entered_in, depth) = INSIDE.get();
    depth > 0 && entered_in == generation()
}

impl Drop for Pass {
    #[inline]
    fn drop(&mut self) {
        let (entered_in, depth) = INSIDE.get();
        if entered_in != self.generation {
            return;
        }
        INSIDE.set((entered_in, depth - 1));
        if depth == 1 {
            own_stripe(&page().gate).count_out(self.generation);
        }
        if self.intruding {
            INTRUDERS.count_out(self.generation);
        }
    }
}

/// Returns whether guarded data that was built in generation `built_in` came intact into this process, or else the
/// reason.
pub(crate) fn intact_since(built_in: u64) -> Result<(), &'static str> {
    generation();
    if INTERRUPTED_IN.load(Ordering::Relaxed) <= built_in {
        return Ok(());
    }
    Err(REASONS[usize::from(INTERRUPTION.load(Ordering::Relaxed))])
}

/// *Prepare*: closes the gate, and waits for threads inside, for at most [`CLOSE_TIMEOUT`].
pub(super) fn close() {
    let gate = &page().gate;
    let generation = loop {
        let generation = generation();
        if gate.closers.count_in(generation) {
            break generation;
        }
    };
    let before = CLOSING.get();
    let forks = if before.generation == generation { before.forks + 1 } else { 1 };
    CLOSING.set(Closing { generation, forks, all_outside: false });
    let (entered_in, depth) = INSIDE.get();
    let this_thread = u16::from(depth > 0 && entered_in == generation);
    let started = Instant::now();
    let mut polls = 0_u32;
    let empty = loop {
        if gate.inside() == this_thread {
            break true;
        }
        if started.elapsed() > CLOSE_TIMEOUT {
            break false;
        }
        pause(&mut polls);
    };
    CLOSING.set(Closing { generation, forks, all_outside: empty && this_thread == 0 });
}

/// Opens the gate in the parent, after the fork. Does nothing in a child that a signal handler has forked in the
/// meantime.
pub(super) fn open() {
    let closing = CLOSING.get();
    if closing.forks > 0 && closing.generation == generation() {
        CLOSING.set(Closing { forks: closing.forks - 1, ..closing });
        page().gate.closers.count_closer_out(closing.generation);
    }
}

/// Returns whether this thread has prepared a fork in `generation` that has not ended. In a child, that is a fork that
/// has not been noticed yet.
pub(super) fn is_closed_by_this_thread(generation: u64) -> bool {
    let closing = CLOSING.get();
    closing.forks > 0 && closing.generation == generation
}

/// In the child: opens and empties the gate (the page is not wiped on every system), and records whether the guarded
/// data is intact. Async-signal-safe. If another fork interrupts it, the result is stored before the inputs are reset.
pub(super) fn reopen(gate: &Counters, generation: u64) {
    gate.reset(generation);
    let intruders = INTRUDERS.count() > 0;
    let closing = CLOSING.replace(NOT_CLOSING);
    let interrupted_by = if intruders {
        Some(0)
    } else if closing.forks > 0 && closing.generation + 1 == generation {
        (!closing.all_outside).then_some(0)
    } else {
        let sole_thread = SOLE_THREAD.load(Ordering::Relaxed);
        let outside = INSIDE.get().1 == 0;
        (sole_thread != 0 && !(sole_thread == thread_token() && outside)).then_some(1)
    };
    if let Some(reason) = interrupted_by {
        INTERRUPTION.store(reason, Ordering::Relaxed);
        INTERRUPTED_IN.store(generation, Ordering::Relaxed);
    }
    INTRUDERS.reset(generation);
    SOLE_THREAD.store(0, Ordering::Release);
}

#[inline]
fn own_stripe(gate: &Counters) -> &Counter {
    &gate.stripes[thread_stripe() % STRIPES]
}

#[inline]
fn record_thread() {
    let token = thread_token();
    let known = SOLE_THREAD.load(Ordering::Relaxed);
    if known == token || known == SEVERAL {
        return;
    }
    if SOLE_THREAD.compare_exchange(0, token, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        SOLE_THREAD.store(SEVERAL, Ordering::Relaxed);
    }
}

fn is_open_in_time(gate: &Counters) -> bool {
    let started = Instant::now();
    let era = gate.closers.word().era();
    let mut polls = 0;
    loop {
        #[cfg(feature = "__injection")]
        crate::injection::reach("closed gate");
        let closers = gate.closers.word();
        if closers.count() == 0 {
            return true;
        }
        if OVERDUE.load(Ordering::Relaxed) == closers.era() {
            return false;
        }
        if started.elapsed() > ENTER_TIMEOUT {
            #[cfg(feature = "__injection")]
            crate::injection::reach("overdue gate");
            OVERDUE.store(era, Ordering::Relaxed);
            return false;
        }
        pause(&mut polls);
    }
}

/// Backs off: spins a few times, then yields, then sleeps. The sleeps grow longer, since many threads that poll often
/// would slow down the thread that is inside.
fn pause(polls: &mut u32) {
    *polls += 1;
    match *polls {
        0..64 => std::hint::spin_loop(),
        64..256 => std::thread::yield_now(),
        late => std::thread::sleep(Duration::from_micros(50) * 2_u32.pow(((late - 256) / 4).min(5))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Counter, FIRST_GENERATION, INTRUDERS, close, enter, open};

    #[test]
    fn a_counter_counts_for_its_own_generation_only() {
        let counter = Counter::new();
        assert!(counter.count_in(FIRST_GENERATION));
        assert!(!counter.count_in(FIRST_GENERATION + 1));
        counter.count_out(FIRST_GENERATION + 1);
        assert_eq!(counter.count(), 1);
        counter.reset(FIRST_GENERATION + 1);
        counter.count_out(FIRST_GENERATION);
        assert_eq!(counter.count(), 0);
        counter.0.store(0, super::Ordering::SeqCst);
        assert_eq!(counter.count(), 0, "a wiped counter");
        assert!(!counter.count_in(FIRST_GENERATION));
        assert_eq!(counter.count(), 0);
    }

    #[test]
    fn a_closed_gate_admits_threads_after_a_timeout() {
        close();
        drop(enter());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _pass = enter();
                assert!(INTRUDERS.count() > 0, "counted for the child");
            });
        });
        open();
        drop(enter());
    }
}
