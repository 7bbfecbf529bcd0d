//! The state of a key in a fetch.
//!
//! | state | meaning | next |
//! | --- | --- | --- |
//! | `Open` | not claimed, or answered | `Claim` with the lead; `Follow` if another caller of the process leads; `Load` if waiting would deadlock |
//! | `Claim`, requesting | leads in this process, asks for the lease | `Load` with the lease; `Claim`, watching, if another process has it; `Open` when answered |
//! | `Claim`, watching | leads, and polls another process's lease | `Claim`, requesting, when the lease ends or the wait is over; `Load`; `Open` when answered |
//! | `Load` | calls its loader | `Open`, answered |
//! | `Follow` | waits for the leader in this process | `Open`; `Load` if the value cannot be shared, or after the second wait |

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::lease::LeaseState;
use super::lease_holder;
use super::single_flight::{Flight, Lead, is_inline_on_a_runtime};
use crate::cache::wait_clock::now;

/// What a caller has to do next to load a key.
pub(super) enum LoadState {
    Open,
    /// Leads in this process, and needs the lease.
    Claim(Claim),
    /// Loads.
    Load(Load),
    /// Waits: another caller of this process leads.
    Follow(Arc<Flight>),
}

pub(super) struct Claim {
    pub(super) lead: Lead,
    /// The lease as last seen on the server, and since when it has been that.
    pub(super) seen: Option<Bytes>,
    pub(super) seen_since: Instant,
    /// Whether to ask for the lease next; if not, to wait for another process.
    pub(super) is_requesting: bool,
    /// Whether the wait is over: this caller loads, with or without the lease.
    pub(super) is_overdue: bool,
    /// How often another process got the lease first.
    pub(super) losses: u32,
}

pub(super) struct Load {
    pub(super) lead: Option<Lead>,
    pub(super) store_when: StoreWhen,
}

/// Whether a loaded value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreWhen {
    /// If this process still holds the lease.
    LeaseHeld,
    /// If the entry has not changed: there are no leases.
    Unchanged,
    /// Always, over any entry.
    Always,
    /// Never: it is only for its callers.
    Never,
}

impl Load {
    /// A load for its own caller only.
    pub(super) const ALONE: Load = Load { lead: None, store_when: StoreWhen::Never };
}

/// What to do about another process's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its holder is loading: wait.
    Wait,
    /// Take it, in place of the bytes that were seen.
    Take,
    /// Load without waiting and without storing.
    LoadWithout,
}

impl Claim {
    pub(super) fn new(lead: Lead, is_overdue: bool) -> Claim {
        Claim { lead, seen: None, seen_since: now(), is_requesting: true, is_overdue, losses: 0 }
    }

    pub(super) fn lose_to(&mut self, held: Option<Bytes>) {
        self.is_requesting = false;
        self.losses += 1;
        self.observe(held);
    }

    /// Records the lease as read now. If it has changed, by another holder or a heartbeat, its time starts again.
    pub(super) fn observe(&mut self, held: Option<Bytes>) {
        if self.seen != held {
            self.seen = held;
            self.seen_since = now();
        }
    }

    pub(super) fn verdict(&self, has_paused: bool) -> Verdict {
        match LeaseState::of(self.seen.as_ref()) {
            LeaseState::Nothing | LeaseState::Deleted => Verdict::Take,
            // A load that stored nothing before this caller came does not predict the next one.
            LeaseState::NothingStored if has_paused => Verdict::LoadWithout,
            LeaseState::NothingStored => Verdict::Take,
            LeaseState::Held { holder, .. } if lease_holder::has_ended(&holder) => Verdict::Take,
            LeaseState::Held { patience, .. } if now().saturating_duration_since(self.seen_since) >= patience => {
                Verdict::Take
            }
            // Its holder may be a task of this runtime, which needs this thread.
            LeaseState::Held { holder, .. } if holder == lease_holder::own() && is_inline_on_a_runtime() => {
                Verdict::LoadWithout
            }
            LeaseState::Held { .. } => Verdict::Wait,
        }
    }
}

impl LoadState {
    /// Turns a claim into a load.
    pub(super) fn load(&mut self, store_when: StoreWhen) {
        if let LoadState::Claim(Claim { lead, .. }) = std::mem::replace(self, LoadState::Open) {
            *self = LoadState::Load(Load { lead: Some(lead), store_when });
        }
    }

    /// Returns the number of the flight that this caller loads.
    pub(super) fn flight(&self) -> Option<u64> {
        match self {
            LoadState::Load(Load { lead: Some(lead), .. }) => Some(lead.flight().number()),
            _ => None,
        }
    }

    /// Takes the lead out of the state.
    pub(super) fn take_lead(&mut self) -> Option<Lead> {
        match std::mem::replace(self, LoadState::Open) {
            LoadState::Claim(Claim { lead, .. }) => Some(lead),
            LoadState::Load(Load { lead, .. }) => lead,
            LoadState::Open | LoadState::Follow(_) => None,
        }
    }
}
