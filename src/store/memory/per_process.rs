//! What one process uses, and how it comes by it after a fork.

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

/// How long a writer waits for room.
const PATIENCE: Duration = Duration::from_millis(5);

const STALLED: &str = "a vanished thread holds up the collector of garbage";

#[derive(Debug)]
pub(super) struct PerProcess {
    engine: Engine,
    /// Takes over if the collector, undecided at first, turns out to have stalled.
    stand_in: Option<Engine>,
    /// The generation in which the engine was last known to be whole.
    whole_in: u64,
    came: Refresh,
    /// Whether garbage of the parent's threads is still counted, or the collector is not known to be alive.
    is_unsettled: AtomicBool,
    /// What the parent used and this process does not, with the generation in which that was whole.
    superseded: Option<(Engine, u64)>,
    pub(super) frozen: Leaked<Table>,
    /// One thread freezes at a time.
    pub(super) freezing: Lock<()>,
}

impl PerProcess {
    /// An empty one: moka, unless it cannot be trusted in this process.
    pub(super) fn empty(bound: Bound, came: Refresh) -> PerProcess {
        let is_intact = gate::intact_since(FIRST_GENERATION).is_ok();
        if is_intact && verdict_or_examine() != Verdict::Stalled {
            PerProcess::new(Engine::moka(bound), bound, came)
        } else {
            PerProcess::new(Engine::cold(bound), bound, came)
        }
    }

    /// What a child uses, of which this is the parent's.
    pub(super) fn inherited(&self, bound: Bound, at_fork: AtFork) -> PerProcess {
        let (engine, whole_in) = (self.engine(), self.whole_in);
        if at_fork == AtFork::Fresh {
            let came = Refresh::Cold { reason: "it was asked to start fresh" };
            return PerProcess { superseded: Some((engine.clone(), whole_in)), ..self.fresh(bound, came) };
        }
        let local = match trust(engine, whole_in) {
            Ok(()) => PerProcess::new(engine.clone(), bound, Refresh::Warm),
            Err(reason) => PerProcess::new(Engine::cold(bound), bound, Refresh::Cold { reason }),
        };
        local.with_frozen(self.frozen.get(), bound).settled()
    }

    /// With what the parent has frozen, which can always be trusted.
    fn with_frozen(self, table: Option<&'static Table>, bound: Bound) -> PerProcess {
        for engine in [Some(&self.engine), self.stand_in.as_ref()].into_iter().flatten() {
            engine.set_frozen(table.map_or(0, |table| bound.of_table(table)));
        }
        PerProcess { frozen: Leaked::new(table), ..self }
    }

    /// An empty one, of which this is the parent's: what the parent inherited and did not use, emptied. A chain of
    /// processes, each forked by the one before, would otherwise hold the entries of them all. What the parent itself
    /// used stays as it is: its pages are shared, and to empty it would copy them.
    fn fresh(&self, bound: Bound, came: Refresh) -> PerProcess {
        match &self.superseded {
            Some((engine, whole_in)) if trust(engine, *whole_in).is_ok() => {
                engine.clear("");
                PerProcess::new(engine.clone(), bound, came).with_frozen(None, bound).settled()
            }
            _ => PerProcess::empty(bound, came),
        }
    }

    fn new(engine: Engine, bound: Bound, came: Refresh) -> PerProcess {
        let is_undecided = engine.needs_collector() && collector::verdict() == Verdict::Undecided;
        let is_unsettled = engine.needs_collector() && generation() != FIRST_GENERATION;
        PerProcess {
            engine,
            stand_in: is_undecided.then(|| Engine::cold(bound)),
            whole_in: generation(),
            came,
            is_unsettled: AtomicBool::new(is_unsettled),
            superseded: None,
            frozen: Leaked::new(None),
            freezing: Lock::new("freezing", ()),
        }
    }

    pub(super) fn came(&self) -> Refresh {
        self.came.clone()
    }

    #[inline]
    pub(super) fn engine(&self) -> &Engine {
        match &self.stand_in {
            Some(stand_in) if collector::verdict() == Verdict::Stalled => stand_in,
            _ => &self.engine,
        }
    }

    /// The same for a write, and room for an entry of this weight, for which it waits a little. Outside of the gate.
    #[inline]
    pub(super) fn engine_with_room(&self, weight: u64) -> (&Engine, Option<Reservation>) {
        let engine = self.engine_to_write();
        match engine.account().reserve(weight) {
            None => self.wait_for_room(engine, weight),
            reserved => (engine, reserved),
        }
    }

    /// A collector of which it is not known whether it is alive is looked at in the meantime, and may be found to be
    /// the reason.
    #[cold]
    fn wait_for_room<'a>(&'a self, engine: &'a Engine, weight: u64) -> (&'a Engine, Option<Reservation>) {
        let started = Instant::now();
        loop {
            let pass = gate::enter();
            if collector::examine() != Verdict::Undecided {
                engine.collect();
            }
            drop(pass);
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

    /// The same, after a look at whether the collector is alive, if that is not known.
    #[inline]
    pub(super) fn engine_to_write(&self) -> &Engine {
        if self.is_unsettled.load(Ordering::Relaxed) {
            self.settle();
        }
        self.engine()
    }

    fn settled(self) -> PerProcess {
        self.settle();
        self
    }

    #[cold]
    fn settle(&self) {
        let _pass = gate::enter();
        let is_settled = match collector::look_on() {
            Verdict::Undecided => false,
            Verdict::Alive => {
                if self.is_unsettled.swap(false, Ordering::Relaxed) {
                    self.engine.write_off_garbage();
                }
                true
            }
            Verdict::Stalled => true,
        };
        if is_settled {
            self.is_unsettled.store(false, Ordering::Relaxed);
        }
    }
}

/// Whether a engine, which was whole in generation `whole_in`, can be used in this process; if not, why.
fn trust(engine: &Engine, whole_in: u64) -> Result<(), &'static str> {
    gate::intact_since(whole_in)?;
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
