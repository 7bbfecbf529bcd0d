//! What a caller has to do with the load of a key, step by step.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::lease::Sighting;
use super::lease_holder;
use super::single_flight::{Flight, Lead, is_inline_on_a_runtime};
use crate::cache::wait_clock::now;

/// What a caller has to do with the load of a key.
pub(super) enum LoadState {
    Open,
    /// It leads in this process, and needs the lease.
    Claim(Claim),
    /// It loads.
    Load(Load),
    /// Another caller of this process leads.
    Follow(Arc<Flight>),
}

pub(super) struct Claim {
    pub(super) lead: Lead,
    /// What was last seen in the lease's place, and since when.
    pub(super) place: Option<Bytes>,
    pub(super) seen_since: Instant,
    /// Whether the lease is to be asked for, or another process is to be waited for.
    pub(super) asks: bool,
    /// Whether the wait is over: this caller loads, whether or not it gets the lease.
    pub(super) is_overdue: bool,
    /// How often another process was quicker.
    pub(super) losses: u32,
}

pub(super) struct Load {
    pub(super) lead: Option<Lead>,
    pub(super) keeps: Keeps,
}

/// What becomes of a loaded value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    /// It is stored if the lease is still held.
    Leased,
    /// It is stored if the entry is as it was: there are no leases here.
    Unleased,
    /// It is stored whatever is there.
    Always,
    /// It is for those who wait for it, and is not stored.
    Nothing,
}

impl Load {
    /// For its own caller only.
    pub(super) const ALONE: Load = Load { lead: None, keeps: Keeps::Nothing };
}

/// What is to be made of another's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its holder is loading.
    Wait,
    /// It is to be taken, in the place of what was seen.
    Take,
    /// Nobody is to be waited for, and nothing to be stored.
    LoadWithout,
}

impl Claim {
    pub(super) fn new(lead: Lead, is_overdue: bool) -> Claim {
        Claim { lead, place: None, seen_since: now(), asks: true, is_overdue, losses: 0 }
    }

    pub(super) fn is_lost_to(&mut self, held: Option<Bytes>) {
        self.asks = false;
        self.losses += 1;
        self.sees(held);
    }

    /// A lease that is another one, or has had a beat, is seen from now on.
    pub(super) fn sees(&mut self, held: Option<Bytes>) {
        if self.place != held {
            self.place = held;
            self.seen_since = now();
        }
    }

    pub(super) fn verdict(&self, has_paused: bool) -> Verdict {
        match Sighting::of(self.place.as_ref()) {
            Sighting::Nothing | Sighting::Deleted => Verdict::Take,
            // One that ended before this caller came says nothing of the next.
            Sighting::NothingStored if has_paused => Verdict::LoadWithout,
            Sighting::NothingStored => Verdict::Take,
            Sighting::Held { holder, .. } if lease_holder::has_ended(&holder) => Verdict::Take,
            Sighting::Held { patience, .. } if now().saturating_duration_since(self.seen_since) >= patience => {
                Verdict::Take
            }
            // A task of this very runtime, perhaps.
            Sighting::Held { holder, .. } if holder == lease_holder::own() && is_inline_on_a_runtime() => {
                Verdict::LoadWithout
            }
            Sighting::Held { .. } => Verdict::Wait,
        }
    }
}

impl LoadState {
    /// A claim becomes a load.
    pub(super) fn load(&mut self, keeps: Keeps) {
        if let LoadState::Claim(Claim { lead, .. }) = std::mem::replace(self, LoadState::Open) {
            *self = LoadState::Load(Load { lead: Some(lead), keeps });
        }
    }

    /// The number of the flight that is loaded.
    pub(super) fn flight(&self) -> Option<u64> {
        match self {
            LoadState::Load(Load { lead: Some(lead), .. }) => Some(lead.flight().number()),
            _ => None,
        }
    }

    /// The flight that is led.
    pub(super) fn take_lead(&mut self) -> Option<Lead> {
        match std::mem::replace(self, LoadState::Open) {
            LoadState::Claim(Claim { lead, .. }) => Some(lead),
            LoadState::Load(Load { lead, .. }) => lead,
            LoadState::Open | LoadState::Follow(_) => None,
        }
    }
}
