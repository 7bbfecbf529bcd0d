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
//! page: a child starts with an open, empty gate even if nobody told it.
//!
//! A thread that is inside may enter again (a signal handler, a store within a store). If the forking thread itself is
//! inside, the section is half done in the child: the child is told so.
//!
//! # What the child is told
//!
//! *Prepare* leaves its outcome with the forking thread, the only one that exists in the child. [`reopen`] turns it into the
//! number of the last generation that was born with something half done; whatever was built before that is not to be
//! trusted ([`intact_since`]). After a fork that went round the handlers nobody waited: memory is trusted only if a single
//! thread ever entered the gate, and it is this one, outside.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::generation::{generation, page};
use super::thread_token;

/// How long a fork waits for sections to end.
const PATIENCE: Duration = Duration::from_millis(100);

const STRIPES: usize = 32;

/// The part of the gate that lives on the wiped page.
pub(super) struct Counters {
    closers: Line,
    stripes: [Line; STRIPES],
}

/// A counter on a cache line (a pair of them, as they are fetched) of its own.
#[repr(align(128))]
struct Line(AtomicU32);

impl Counters {
    pub(super) const fn new() -> Counters {
        Counters { closers: Line(AtomicU32::new(0)), stripes: [const { Line(AtomicU32::new(0)) }; STRIPES] }
    }

    fn inside(&self) -> u32 {
        self.stripes.iter().map(|stripe| stripe.0.load(Ordering::SeqCst)).sum()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// No *prepare* handler ran on this thread.
    Unknown,
    Quiet,
    Interrupted,
}

thread_local! {
    /// How often this thread is inside, and in which generation it entered.
    static INSIDE: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
    /// What *prepare* found, on its way to the child.
    static OUTCOME: Cell<Outcome> = const { Cell::new(Outcome::Unknown) };
}

/// The only thread that ever entered, by its token; 0 for none, [`SEVERAL`] for more than one.
static SOLE: AtomicUsize = AtomicUsize::new(0);
const SEVERAL: usize = usize::MAX;

/// The last generation that was born with something half done, and why that is thought.
static INTERRUPTED_IN: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED_BY: AtomicU8 = AtomicU8::new(0);

const REASONS: [&str; 2] = [
    "another thread was inside the store at the fork",
    "the fork went round the fork handlers of a process with threads",
];

/// Leave to be inside, until it is dropped.
#[must_use]
pub(crate) struct Pass {
    generation: u64,
}

/// Enters, after waiting for a fork that is under way.
#[inline]
pub(crate) fn enter() -> Pass {
    let generation = generation();
    let (entered_in, depth) = INSIDE.get();
    if depth > 0 && entered_in == generation {
        INSIDE.set((generation, depth + 1));
        return Pass { generation };
    }
    let gate = &page().gate;
    let stripe = own_stripe(gate);
    stripe.fetch_add(1, Ordering::SeqCst);
    while gate.closers.0.load(Ordering::SeqCst) != 0 {
        stripe.fetch_sub(1, Ordering::SeqCst);
        wait_until_open(gate);
        stripe.fetch_add(1, Ordering::SeqCst);
    }
    INSIDE.set((generation, 1));
    remember_thread();
    #[cfg(feature = "__injection")]
    crate::injection::reach("gate");
    Pass { generation }
}

impl Drop for Pass {
    #[inline]
    fn drop(&mut self) {
        let (entered_in, depth) = INSIDE.get();
        if entered_in != self.generation {
            return;
        }
        INSIDE.set((entered_in, depth - 1));
        // In a child, the stripes were wiped: there is nothing to count out of.
        if depth == 1 && self.generation == generation() {
            own_stripe(&page().gate).fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Whether what the gate guards, built in generation `built_in`, came whole into this process; if not, why.
#[cfg_attr(not(feature = "memory"), expect(dead_code))]
pub(crate) fn intact_since(built_in: u64) -> Result<(), &'static str> {
    generation();
    if INTERRUPTED_IN.load(Ordering::Relaxed) <= built_in {
        return Ok(());
    }
    Err(REASONS[usize::from(INTERRUPTED_BY.load(Ordering::Relaxed))])
}

/// *Prepare*: closes the gate and waits for who is inside, for at most [`PATIENCE`].
pub(super) fn close() {
    let generation = generation();
    let gate = &page().gate;
    gate.closers.0.fetch_add(1, Ordering::SeqCst);
    let (entered_in, depth) = INSIDE.get();
    let this_thread = u32::from(depth > 0 && entered_in == generation);
    let started = Instant::now();
    let mut looks = 0_u32;
    let quiet = loop {
        if gate.inside() == this_thread {
            break true;
        }
        if started.elapsed() > PATIENCE {
            break false;
        }
        pause(&mut looks);
    };
    OUTCOME.set(if quiet && this_thread == 0 { Outcome::Quiet } else { Outcome::Interrupted });
}

/// In the parent, after the fork.
pub(super) fn open() {
    OUTCOME.set(Outcome::Unknown);
    page().gate.closers.0.fetch_sub(1, Ordering::SeqCst);
}

/// In the child: an open and empty gate (the page is not wiped everywhere), and the verdict on what it guarded.
/// Async-signal-safe.
pub(super) fn reopen(gate: &Counters, generation: u64) {
    gate.closers.0.store(0, Ordering::SeqCst);
    for stripe in &gate.stripes {
        stripe.0.store(0, Ordering::SeqCst);
    }
    let interrupted_by = match OUTCOME.replace(Outcome::Unknown) {
        Outcome::Quiet => None,
        Outcome::Interrupted => Some(0),
        Outcome::Unknown => {
            let sole = SOLE.load(Ordering::Relaxed);
            let outside = INSIDE.get().1 == 0;
            (!(sole == 0 || (sole == thread_token() && outside))).then_some(1)
        }
    };
    if let Some(reason) = interrupted_by {
        INTERRUPTED_BY.store(reason, Ordering::Relaxed);
        INTERRUPTED_IN.store(generation, Ordering::Relaxed);
    }
}

#[inline]
fn own_stripe(gate: &Counters) -> &AtomicU32 {
    // Thread-local storage is laid out at large powers of two: mix before reducing.
    let mixed = (thread_token() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    &gate.stripes[(mixed >> 59) as usize % STRIPES].0
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

#[cold]
fn wait_until_open(gate: &Counters) {
    let mut looks = 0;
    while gate.closers.0.load(Ordering::SeqCst) != 0 {
        pause(&mut looks);
    }
}

/// Gives way: a few spins, then the processor, then short naps.
fn pause(looks: &mut u32) {
    *looks += 1;
    match *looks {
        0..64 => std::hint::spin_loop(),
        64..256 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros(50)),
    }
}
