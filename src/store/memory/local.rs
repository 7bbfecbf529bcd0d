//! What one process uses, and how it comes by it after a fork.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::account::Reservation;
use super::backing::Backing;
use super::collector::{self, Verdict};
use super::frozen::Table;
use super::settings::{AtFork, Bound};
use crate::lifecycle::{FIRST_GENERATION, Leaked, Refresh, gate, generation};
use crate::sync::Lock;

/// How long a writer waits for room.
const PATIENCE: Duration = Duration::from_millis(5);

const STALLED: &str = "a vanished thread holds up the collector of garbage";

#[derive(Debug)]
pub(super) struct Local {
    backing: Backing,
    /// Takes over if the collector, undecided at first, turns out to have stalled.
    stand_in: Option<Backing>,
    /// The generation in which the backing was last known to be whole.
    whole_in: u64,
    came: Refresh,
    /// Whether garbage of the parent's threads is still counted, or the collector is not known to be alive.
    is_unsettled: AtomicBool,
    /// What the parent used and this process does not, with the generation in which that was whole.
    superseded: Option<(Backing, u64)>,
    pub(super) frozen: Leaked<Table>,
    /// One thread freezes at a time.
    pub(super) freezing: Lock<()>,
}

impl Local {
    /// An empty one: moka, unless it cannot be trusted in this process.
    pub(super) fn empty(bound: Bound, came: Refresh) -> Local {
        let is_intact = gate::intact_since(FIRST_GENERATION).is_ok();
        if is_intact && verdict_or_examine() != Verdict::Stalled {
            Local::new(Backing::moka(bound), bound, came)
        } else {
            Local::new(Backing::cold(bound), bound, came)
        }
    }

    /// What a child uses, of which this is the parent's.
    pub(super) fn inherited(&self, bound: Bound, at_fork: AtFork) -> Local {
        let (backing, whole_in) = (self.backing(), self.whole_in);
        if at_fork == AtFork::Fresh {
            let came = Refresh::Cold { reason: "it was asked to start fresh" };
            return Local { superseded: Some((backing.clone(), whole_in)), ..self.fresh(bound, came) };
        }
        let local = match trust(backing, whole_in) {
            Ok(()) => Local::new(backing.clone(), bound, Refresh::Warm),
            Err(reason) => Local::new(Backing::cold(bound), bound, Refresh::Cold { reason }),
        };
        local.with_frozen(self.frozen.get(), bound).settled()
    }

    /// With what the parent has frozen, which can always be trusted.
    fn with_frozen(self, table: Option<&'static Table>, bound: Bound) -> Local {
        for backing in [Some(&self.backing), self.stand_in.as_ref()].into_iter().flatten() {
            backing.set_frozen(table.map_or(0, |table| bound.of_table(table)));
        }
        Local { frozen: Leaked::new(table), ..self }
    }

    /// An empty one, of which this is the parent's: what the parent inherited and did not use, emptied. A chain of
    /// processes, each forked by the one before, would otherwise hold the entries of them all. What the parent itself
    /// used stays as it is: its pages are shared, and to empty it would copy them.
    fn fresh(&self, bound: Bound, came: Refresh) -> Local {
        match &self.superseded {
            Some((backing, whole_in)) if trust(backing, *whole_in).is_ok() => {
                backing.clear("");
                Local::new(backing.clone(), bound, came).with_frozen(None, bound).settled()
            }
            _ => Local::empty(bound, came),
        }
    }

    fn new(backing: Backing, bound: Bound, came: Refresh) -> Local {
        let is_undecided = backing.needs_collector() && collector::verdict() == Verdict::Undecided;
        let is_unsettled = backing.needs_collector() && generation() != FIRST_GENERATION;
        Local {
            backing,
            stand_in: is_undecided.then(|| Backing::cold(bound)),
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
    pub(super) fn backing(&self) -> &Backing {
        match &self.stand_in {
            Some(stand_in) if collector::verdict() == Verdict::Stalled => stand_in,
            _ => &self.backing,
        }
    }

    /// The same for a write, and room for an entry of this weight, for which it waits a little. Outside of the gate.
    #[inline]
    pub(super) fn backing_with_room(&self, weight: u64) -> (&Backing, Option<Reservation>) {
        let backing = self.backing_to_write();
        match backing.account().reserve(weight) {
            None => self.wait_for_room(backing, weight),
            reserved => (backing, reserved),
        }
    }

    /// A collector of which it is not known whether it is alive is looked at in the meantime, and may be found to be
    /// the reason.
    #[cold]
    fn wait_for_room<'a>(&'a self, backing: &'a Backing, weight: u64) -> (&'a Backing, Option<Reservation>) {
        let started = Instant::now();
        loop {
            let pass = gate::enter();
            if collector::examine() != Verdict::Undecided {
                backing.collect();
            }
            drop(pass);
            let current = self.backing();
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
    pub(super) fn backing_to_write(&self) -> &Backing {
        if self.is_unsettled.load(Ordering::Relaxed) {
            self.settle();
        }
        self.backing()
    }

    fn settled(self) -> Local {
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
                    self.backing.write_off_garbage();
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

/// Whether a backing, which was whole in generation `whole_in`, can be used in this process; if not, why.
fn trust(backing: &Backing, whole_in: u64) -> Result<(), &'static str> {
    gate::intact_since(whole_in)?;
    if backing.needs_collector() && verdict_or_examine() == Verdict::Stalled { Err(STALLED) } else { Ok(()) }
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
