//! The state of a memory store in one process, and how a child derives it from its parent's.
//!
//! | the parent's state is | `at_fork` | the child has |
//! | --- | --- | --- |
//! | intact, and the collector is alive | `Inherit` | the parent's engine and frozen tables (warm) |
//! | intact, and the collector is undecided | `Inherit` | the same, and a fallback in reserve (warm) |
//! | not intact, or the collector has stalled | `Inherit` | a fallback, and the parent's frozen tables (cold) |
//! | any | `Fresh` | an empty engine without frozen tables (cold) |

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::account::Reservation;
use super::collector::{self, Verdict};
use super::engine::Engine;
use super::frozen::Table;
use super::settings::{AtFork, Bound};
use crate::lifecycle::{FIRST_GENERATION, Leaked, Refresh, gate, generation};
use crate::sync::Lock;

/// The longest time that a writer waits for room.
const PATIENCE: Duration = Duration::from_millis(5);

const STALLED: &str = "a thread that does not exist in this process has stalled the garbage collector";

#[derive(Debug)]
pub(super) struct PerProcess {
    engine: Engine,
    /// Replaces the engine if the collector, undecided at first, turns out to have stalled.
    fallback: Option<Engine>,
    /// The generation in which the engine was last known to be intact.
    intact_in: u64,
    refresh: Refresh,
    /// Whether garbage of the parent's threads is still counted, or the collector is not known to be alive.
    needs_check: AtomicBool,
    /// The parent's engine, which this process does not use, and the generation in which it was intact.
    superseded: Option<(Engine, u64)>,
    pub(super) frozen: Leaked<Table>,
    /// Held by the thread that freezes.
    pub(super) freezing: Lock<()>,
}

impl PerProcess {
    /// Creates an empty state: on moka, or on a fallback if moka cannot be used in this process.
    pub(super) fn empty(bound: Bound, refresh: Refresh) -> PerProcess {
        let is_intact = gate::intact_since(FIRST_GENERATION).is_ok();
        if is_intact && verdict_or_examine() != Verdict::Stalled {
            PerProcess::new(Engine::moka(bound), bound, refresh)
        } else {
            PerProcess::new(Engine::fallback(bound), bound, refresh)
        }
    }

    /// Creates the state of a child from `self`, its parent's.
    pub(super) fn inherited(&self, bound: Bound, at_fork: AtFork) -> PerProcess {
        let (engine, intact_in) = (self.engine(), self.intact_in);
        if at_fork == AtFork::Fresh {
            let refresh = Refresh::Cold { reason: "the store is set to start fresh" };
            return PerProcess { superseded: Some((engine.clone(), intact_in)), ..self.fresh(bound, refresh) };
        }
        let local = match check_usable(engine, intact_in) {
            Ok(()) => PerProcess::new(engine.clone(), bound, Refresh::Warm),
            Err(reason) => PerProcess::new(Engine::fallback(bound), bound, Refresh::Cold { reason }),
        };
        local.with_frozen(self.frozen.get(), bound).checked()
    }

    /// Adds the parent's frozen tables, which can always be used.
    fn with_frozen(self, table: Option<&'static Table>, bound: Bound) -> PerProcess {
        for engine in [Some(&self.engine), self.fallback.as_ref()].into_iter().flatten() {
            engine.set_frozen(table.map_or(0, |table| bound.of_table(table)));
        }
        PerProcess { frozen: Leaked::new(table), ..self }
    }

    /// Creates an empty state for a child from `self`, its parent's. The engine that the parent inherited and did not
    /// use is cleared and used again. Otherwise a chain of processes, each forked by the previous one, would keep the
    /// entries of all of them. The engine that the parent did use is not cleared: its pages are shared, and clearing
    /// would copy them.
    fn fresh(&self, bound: Bound, refresh: Refresh) -> PerProcess {
        match &self.superseded {
            Some((engine, intact_in)) if check_usable(engine, *intact_in).is_ok() => {
                engine.clear("");
                PerProcess::new(engine.clone(), bound, refresh).with_frozen(None, bound).checked()
            }
            _ => PerProcess::empty(bound, refresh),
        }
    }

    fn new(engine: Engine, bound: Bound, refresh: Refresh) -> PerProcess {
        let is_undecided = engine.needs_collector() && collector::verdict() == Verdict::Undecided;
        let needs_check = engine.needs_collector() && generation() != FIRST_GENERATION;
        PerProcess {
            engine,
            fallback: is_undecided.then(|| Engine::fallback(bound)),
            intact_in: generation(),
            refresh,
            needs_check: AtomicBool::new(needs_check),
            superseded: None,
            frozen: Leaked::new(None),
            freezing: Lock::new("freezing", ()),
        }
    }

    /// Returns how the store was brought into this process.
    pub(super) fn refresh(&self) -> Refresh {
        self.refresh.clone()
    }

    #[inline]
    pub(super) fn engine(&self) -> &Engine {
        match &self.fallback {
            Some(fallback) if collector::verdict() == Verdict::Stalled => fallback,
            _ => &self.engine,
        }
    }

    /// Returns the engine for a write, with room for an entry of this weight. If there is no room, waits for it for at
    /// most [`PATIENCE`]. Must be called outside of the gate.
    #[inline]
    pub(super) fn engine_with_room(&self, weight: u64) -> (&Engine, Option<Reservation>) {
        let engine = self.engine_to_write();
        match engine.account().reserve(weight) {
            None => self.wait_for_room(engine, weight),
            reserved => (engine, reserved),
        }
    }

    /// Waits for room. An undecided collector is examined in the meantime. If it has stalled, which may be why there
    /// is no room, the fallback is used.
    #[cold]
    fn wait_for_room<'a>(&'a self, engine: &'a Engine, weight: u64) -> (&'a Engine, Option<Reservation>) {
        let started = Instant::now();
        loop {
            if verdict_or_examine() != Verdict::Undecided {
                let _pass = gate::enter();
                engine.collect();
            }
            let current = self.engine();
            let reserved = current.account().reserve(weight);
            if reserved.is_some() || started.elapsed() > PATIENCE {
                return (current, reserved);
            }
            if collector::verdict() != Verdict::Undecided {
                thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// Returns the engine for a write. Before that, examines the collector once if there is no verdict yet.
    #[inline]
    pub(super) fn engine_to_write(&self) -> &Engine {
        if self.needs_check.load(Ordering::Relaxed) {
            self.check_collector();
        }
        self.engine()
    }

    fn checked(self) -> PerProcess {
        self.check_collector();
        self
    }

    /// Examines the collector once. When it is known to be alive, stops counting the garbage of the parent's threads.
    #[cold]
    fn check_collector(&self) {
        let _pass = gate::enter();
        let is_decided = match collector::examine_once() {
            Verdict::Undecided => false,
            Verdict::Alive => {
                if self.needs_check.swap(false, Ordering::Relaxed) {
                    self.engine.write_off_garbage();
                }
                true
            }
            Verdict::Stalled => true,
        };
        if is_decided {
            self.needs_check.store(false, Ordering::Relaxed);
        }
    }
}

/// Checks that an engine, which was intact in generation `intact_in`, can be used in this process. The error is the
/// reason why it cannot.
fn check_usable(engine: &Engine, intact_in: u64) -> Result<(), &'static str> {
    gate::intact_since(intact_in)?;
    if engine.needs_collector() && verdict_or_examine() == Verdict::Stalled { Err(STALLED) } else { Ok(()) }
}

fn verdict_or_examine() -> Verdict {
    match collector::verdict() {
        Verdict::Undecided => {
            let _pass = gate::enter();
            collector::examine()
        }
        known => known,
    }
}
