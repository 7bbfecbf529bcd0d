//! A gate that a fork waits at, so that it finds nothing half done.
//!
//! Short sections that must not be split by a fork run between [`enter`] and the drop of its [`Pass`]: a touch of moka, the
//! making and the closing of a socket. They hold system calls that do not wait, moka's own work and atomics; never a user's
//! code, a dial, or anything that waits for another thread.
//!
//! # How it closes
//!
//! Whoever enters counts itself in on one of several stripes and then looks for closers; the fork's *prepare* handler counts
//! itself in as a closer and then looks at the stripes. Both are sequentially consistent, so at least one of them sees the
//! other: a section either finishes before the fork or has not begun. The wait has a bound; after it the fork goes on, and
//! the child knows that it cannot trust what the sections guard.
//!
//! Closers are *counted*: the C library overlaps the handlers of forks on several threads, and with a plain flag a child was
//! born after another thread's fork had reopened the gate. No lock is held through a fork. The counters are on the wiped
//! page: a child starts with an open, empty gate even if nobody told it. Each counter says which generation it counts for: a
//! signal handler may fork between any two instructions here, and what goes on in its child must not count in or out there.
//!
//! A thread that is inside may enter again (a signal handler, a store within a store). If the forking thread itself is
//! inside, the section is half done in the child: the child is told so.
//!
//! # Who does not wait
//!
//! The host's own *prepare* handlers mostly run after ours, on a closed gate (they were registered first). They may enter
//! it, and they may wait for a lock whose holder wants to enter it. So the forking thread enters at once, and every other
//! thread waits for a bounded time only. Both enter as *intruders*, counted in memory that a child inherits: it is the
//! fork that finds one inside which pays, with a cold child. Once a thread has waited for that long, others do not wait either
//! until the gate has opened. Each time that it has been closed is an *era*, which the last closer ends as it counts itself out,
//! in one step: what a thread finds out about an era that is over says nothing of the next.
//!
//! # What the child is told
//!
//! *Prepare* leaves its outcome with the forking thread, the only one that exists in the child. [`reopen`] turns it into the
//! number of the last generation that was born with something half done; whatever was built before that is not to be
//! trusted ([`intact_since`]). After a fork that went round the handlers nobody waited: memory is trusted only if a single
//! thread of that process ever entered the gate, and it is this one, outside.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::generation::{generation, page};
use super::{FIRST_GENERATION, thread_stripe, thread_token};

/// How long a fork waits for sections to end.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long a section waits for forks to end: longer than the kernel needs to copy a large process.
const LONG_FORK: Duration = Duration::from_millis(500);

const STRIPES: usize = 32;

/// The part of the gate that lives on the wiped page.
pub(super) struct Counters {
    closers: Counter,
    stripes: [Counter; STRIPES],
}

impl Counters {
    pub(super) const fn new() -> Counters {
        Counters { closers: Counter::new(), stripes: [const { Counter::new() }; STRIPES] }
    }

    /// Open and empty, for `generation`.
    pub(super) fn start_over(&self, generation: u64) {
        self.closers.start_over(generation);
        for stripe in &self.stripes {
            stripe.start_over(generation);
        }
    }

    fn inside(&self) -> u16 {
        self.stripes.iter().map(Counter::count).fold(0, u16::wrapping_add)
    }
}

/// Counts for one generation: its low half in the upper 32 bits; then 16 bits for the era; the count in the lowest 16, on top of
/// [`NOBODY`]. On a cache line (a pair of them, as they are fetched) of its own.
#[repr(align(128))]
struct Counter(AtomicU64);

/// In the middle of the range: a count that is taken back a moment later never reaches the bits above.
const NOBODY: u64 = 1 << 15;

/// What a counter is at one moment.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    fn count(self) -> u16 {
        // A wiped one counts nobody.
        if self.0 == 0 { 0 } else { (self.0 as u16).wrapping_sub(NOBODY as u16) }
    }

    /// With the generation that it is of.
    fn era(self) -> u64 {
        self.0 >> 16
    }

    /// One less; the last one ends the era.
    fn without_a_closer(self) -> Word {
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
        Counter(AtomicU64::new(Counter::nobody_in(FIRST_GENERATION)))
    }

    const fn nobody_in(generation: u64) -> u64 {
        generation << 32 | NOBODY
    }

    fn start_over(&self, generation: u64) {
        self.0.store(Counter::nobody_in(generation), Ordering::SeqCst);
    }

    /// Answers whether this counter counts for `generation`; if not, nothing is counted.
    #[inline]
    fn count_in(&self, generation: u64) -> bool {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        let counted = is_of(before, generation);
        if !counted {
            self.take_back(before, |word| word - 1);
        }
        counted
    }

    /// Does nothing if the count was for another generation.
    #[inline]
    fn count_out(&self, generation: u64) {
        let before = self.0.fetch_sub(1, Ordering::SeqCst);
        if !is_of(before, generation) {
            self.take_back(before, |word| word + 1);
        }
    }

    /// In a child that a signal handler made a moment ago. A counter that has started over since needs no correction.
    #[cold]
    fn take_back(&self, before: u64, correct: impl Fn(u64) -> u64) {
        let same = |word: u64| word >> 32 == before >> 32;
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |word| same(word).then(|| correct(word)));
    }

    /// Counts a closer out, unless it was counted for another generation.
    fn count_closer_out(&self, generation: u64) {
        let less = |word| is_of(word, generation).then(|| Word(word).without_a_closer().0);
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::Relaxed, less);
    }

    fn word(&self) -> Word {
        Word(self.0.load(Ordering::SeqCst))
    }

    fn count(&self) -> u16 {
        self.word().count()
    }
}

fn is_of(word: u64, generation: u64) -> bool {
    word >> 32 == generation & u64::from(u32::MAX)
}

/// The forks that a thread has prepared and not ended.
#[derive(Clone, Copy)]
struct Closing {
    generation: u64,
    /// More than one if a signal handler, or a handler of the host's, forks in the middle of a fork.
    forks: u32,
    /// Whether everybody was outside.
    quiet: bool,
}

const NOT_CLOSING: Closing = Closing { generation: 0, forks: 0, quiet: false };

thread_local! {
    /// How often this thread is inside, and in which generation it entered.
    static INSIDE: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
    /// What *prepare* found, on its way to the child.
    static CLOSING: Cell<Closing> = const { Cell::new(NOT_CLOSING) };
}

/// Those inside who did not wait for a fork. Not on the wiped page: a child is to see them.
static INTRUDERS: Counter = Counter::new();

/// The era in which somebody has waited for [`LONG_FORK`]: until it ends nobody else need.
static OVERDUE: AtomicU64 = AtomicU64::new(0);

/// The only thread that ever entered in this generation, by its token; 0 for none, [`SEVERAL`] for more than one.
static SOLE: AtomicUsize = AtomicUsize::new(0);
const SEVERAL: usize = usize::MAX;

/// The last generation that was born with something half done, and why that is thought.
static INTERRUPTED_IN: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED_BY: AtomicU8 = AtomicU8::new(0);

const REASONS: [&str; 2] = [
    "another thread was inside the store at the fork",
    "the fork went round the fork handlers of a process with threads",
];

/// Leave to be inside, until it is dropped. It stays with its thread.
#[must_use]
pub(crate) struct Pass {
    generation: u64,
    /// Whether it did not wait for a fork. Here and not with the thread: a signal handler may enter at any point.
    intruding: bool,
    stays: PhantomData<*const ()>,
}

/// Enters, after waiting for a fork that is under way.
#[inline]
pub(crate) fn enter() -> Pass {
    loop {
        let generation = generation();
        let (entered_in, depth) = INSIDE.get();
        if depth > 0 && entered_in == generation {
            INSIDE.set((generation, depth + 1));
            return Pass { generation, intruding: false, stays: PhantomData };
        }
        remember_thread();
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
        return Pass { generation, intruding, stays: PhantomData };
    }
}

/// Waits outside of a closed gate. Once that has taken too long, counts this thread as an intruder, inside.
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

/// Whether this thread is inside.
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

/// Whether what the gate guards, built in generation `built_in`, came whole into this process; if not, why.
pub(crate) fn intact_since(built_in: u64) -> Result<(), &'static str> {
    generation();
    if INTERRUPTED_IN.load(Ordering::Relaxed) <= built_in {
        return Ok(());
    }
    Err(REASONS[usize::from(INTERRUPTED_BY.load(Ordering::Relaxed))])
}

/// *Prepare*: closes the gate and waits for who is inside, for at most [`PATIENCE`].
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
    CLOSING.set(Closing { generation, forks, quiet: false });
    let (entered_in, depth) = INSIDE.get();
    let this_thread = u16::from(depth > 0 && entered_in == generation);
    let started = Instant::now();
    let mut looks = 0_u32;
    let empty = loop {
        if gate.inside() == this_thread {
            break true;
        }
        if started.elapsed() > PATIENCE {
            break false;
        }
        pause(&mut looks);
    };
    CLOSING.set(Closing { generation, forks, quiet: empty && this_thread == 0 });
}

/// In the parent, after the fork. In a child that a signal handler made meanwhile there is nothing to open.
pub(super) fn open() {
    let closing = CLOSING.get();
    if closing.forks > 0 && closing.generation == generation() {
        CLOSING.set(Closing { forks: closing.forks - 1, ..closing });
        page().gate.closers.count_closer_out(closing.generation);
    }
}

/// Whether this thread has prepared a fork in `generation` that has not ended: in a child, one that nobody has noticed yet.
pub(super) fn is_closed_by_this_thread(generation: u64) -> bool {
    let closing = CLOSING.get();
    closing.forks > 0 && closing.generation == generation
}

/// In the child: an open and empty gate (the page is not wiped everywhere), and the verdict on what it guarded.
/// Async-signal-safe. If another fork interrupts it, the verdict stands before what it was reached from is forgotten.
pub(super) fn reopen(gate: &Counters, generation: u64) {
    gate.start_over(generation);
    let intruders = INTRUDERS.count() > 0;
    let closing = CLOSING.replace(NOT_CLOSING);
    let interrupted_by = if intruders {
        Some(0)
    } else if closing.forks > 0 && closing.generation + 1 == generation {
        (!closing.quiet).then_some(0)
    } else {
        let sole = SOLE.load(Ordering::Relaxed);
        let outside = INSIDE.get().1 == 0;
        (sole != 0 && !(sole == thread_token() && outside)).then_some(1)
    };
    if let Some(reason) = interrupted_by {
        INTERRUPTED_BY.store(reason, Ordering::Relaxed);
        INTERRUPTED_IN.store(generation, Ordering::Relaxed);
    }
    INTRUDERS.start_over(generation);
    SOLE.store(0, Ordering::Release);
}

#[inline]
fn own_stripe(gate: &Counters) -> &Counter {
    &gate.stripes[thread_stripe() % STRIPES]
}

#[inline]
fn remember_thread() {
    let token = thread_token();
    let known = SOLE.load(Ordering::Relaxed);
    if known == token || known == SEVERAL {
        return;
    }
    if SOLE.compare_exchange(0, token, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        SOLE.store(SEVERAL, Ordering::Relaxed);
    }
}

fn is_open_in_time(gate: &Counters) -> bool {
    let started = Instant::now();
    let era = gate.closers.word().era();
    let mut looks = 0;
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
        if started.elapsed() > LONG_FORK {
            #[cfg(feature = "__injection")]
            crate::injection::reach("overdue gate");
            OVERDUE.store(era, Ordering::Relaxed);
            return false;
        }
        pause(&mut looks);
    }
}

/// Gives way: a few spins, then the processor, then naps. They grow longer, since many threads that look often keep the
/// one that is inside from getting out.
fn pause(looks: &mut u32) {
    *looks += 1;
    match *looks {
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
        counter.start_over(FIRST_GENERATION + 1);
        counter.count_out(FIRST_GENERATION);
        assert_eq!(counter.count(), 0);
        counter.0.store(0, super::Ordering::SeqCst);
        assert_eq!(counter.count(), 0, "a wiped counter");
        assert!(!counter.count_in(FIRST_GENERATION));
        assert_eq!(counter.count(), 0);
    }

    #[test]
    fn a_closed_gate_keeps_nobody_out_for_ever() {
        close();
        drop(enter());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _pass = enter();
                assert!(INTRUDERS.count() > 0, "a child has to know");
            });
        });
        open();
        drop(enter());
    }
}
