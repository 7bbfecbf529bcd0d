//! The second step: who loads. In the process the lead of a flight says so, among processes a lease.
//!
//! Both are guards. The lead is had or not at once; then the leases of all keys are asked for in one round trip, which
//! also reads the keys once more, since a value may have been stored after the first look.

use std::sync::Arc;

use bytes::Bytes;

use super::form::{Form, Found};
use super::lease::Lease;
use super::load_state::{Claim, Keeps, Load, LoadState, Verdict};
use super::nesting;
use super::single_flight::{Joined, Landing};
use super::{Answer, Fetching};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Op, Outcome};

/// One key's share of the round trip.
struct Asked {
    place: usize,
    full_key: String,
    lease: Option<Lease>,
    /// What the lease is to take the place of.
    instead_of: Option<Bytes>,
}

impl<V: Form, E> Fetching<V, E> {
    /// In this process.
    pub(super) fn lead(&mut self) {
        let flights = Arc::clone(&self.cache.local().flights);
        let lapse = self.cache.longest_load();
        for wanted in &mut self.wanted {
            if wanted.answer.is_some() || !matches!(wanted.state, LoadState::Open) {
                continue;
            }
            let joined = if wanted.old.is_some() {
                // The old value serves while another caller loads.
                flights.try_lead(&wanted.full_key, lapse).map(Joined::Lead)
            } else {
                Some(flights.join(&wanted.full_key, lapse, wanted.overdue.take().as_deref()))
            };
            wanted.state = match joined {
                None => {
                    wanted.answer_old();
                    LoadState::Open
                }
                Some(Joined::Lead(lead)) => LoadState::Claim(Claim::new(lead, wanted.turn > 0)),
                // To wait would be to wait for oneself, or for what only this thread could do.
                Some(Joined::Wait(flight))
                    if nesting::is_part_of(flight.number()) || flight.would_block_its_leader() =>
                {
                    LoadState::Load(Load::ALONE)
                }
                Some(Joined::Wait(flight)) => LoadState::Follow(flight),
            };
        }
    }

    /// Among processes.
    pub(super) async fn lease(&mut self) {
        let asked = self.ask();
        if asked.is_empty() {
            return;
        }
        let mut operations = Vec::with_capacity(3 * asked.len());
        for Asked { full_key, lease, instead_of, .. } in &asked {
            if let Some(lease) = lease {
                operations.push(lease.take(instead_of.as_deref()));
                operations.push(Op::Get { key: lease.key() });
            }
            operations.push(Op::Get { key: full_key });
        }
        let mut outcomes = self.cache.batch(&operations).await.into_iter();
        let mut unneeded = Vec::new();
        for Asked { place, lease, instead_of, .. } in &asked {
            let leased = lease.is_some().then(|| outcomes.next().zip(outcomes.next())).flatten();
            if let Some((taken, held)) = leased {
                self.take_in_lease(*place, instead_of.is_some(), taken, held);
            }
            if let Some(latest) = outcomes.next()
                && self.take_in_again(*place, latest)
            {
                unneeded.push(*place);
            }
        }
        self.leases.release(&unneeded).await;
    }

    /// What is to be asked for. A lead that needs no lease loads at once, unless this process has stored something
    /// since the first look.
    fn ask(&mut self) -> Vec<Asked> {
        let local = self.cache.local();
        let landed = local.flights.landed();
        let has_landed = std::mem::replace(&mut self.landed, landed) != landed;
        let takes_leases = self.cache.takes_leases() && !local.has_no_leases();
        let mut asked = Vec::new();
        for (place, wanted) in self.wanted.iter_mut().enumerate() {
            let LoadState::Claim(claim) = &mut wanted.state else { continue };
            if !claim.asks {
                continue;
            }
            let lease = (takes_leases && wanted.is_kept).then(|| Lease::new(&wanted.full_key, self.cache.patience()));
            if let Some(lease) = &lease {
                self.leases.add(place, lease.clone());
            }
            let (instead_of, is_kept) = (claim.place.clone(), wanted.is_kept);
            if lease.is_none() {
                wanted.state.load(if is_kept { Keeps::Unleased } else { Keeps::Nothing });
            }
            if lease.is_some() || (is_kept && has_landed) {
                asked.push(Asked { place, full_key: wanted.full_key.clone(), lease, instead_of });
            }
        }
        asked
    }

    /// What has become of the attempt to take a lease.
    fn take_in_lease(&mut self, place: usize, was_seen: bool, taken: Result<Outcome>, held: Result<Outcome>) {
        let wanted = &mut self.wanted[place];
        let error = match taken {
            Ok(taken) if taken.is_done() => return wanted.state.load(Keeps::Leased),
            Ok(_) => {
                self.leases.forget(place);
                let LoadState::Claim(claim) = &mut wanted.state else { return };
                claim.is_lost_to(held.ok().and_then(Outcome::into_value));
                if wanted.old.is_some() {
                    claim.seen_since = self.cache.local().flights.is_elsewhere(&wanted.full_key, claim.place.as_ref());
                    if was_seen || claim.verdict(false) != Verdict::Take {
                        wanted.state = LoadState::Open;
                        wanted.answer_old();
                    }
                } else if claim.is_overdue && was_seen {
                    wanted.state.load(Keeps::Nothing);
                }
                return;
            }
            Err(error) => error,
        };
        if error.kind() == ErrorKind::Unsupported {
            self.leases.forget(place);
            if self.cache.local().take_no_leases() {
                self.cache.report(self.verb, &error);
            }
            return wanted.state.load(Keeps::Unleased);
        }
        self.cache.report(self.verb, &error);
        // What may have been granted is released in the end.
        if !is_uncertain(&error) {
            self.leases.forget(place);
        }
        if wanted.old.is_some() {
            wanted.state = LoadState::Open;
            wanted.answer_old();
        } else {
            wanted.state.load(if is_uncertain(&error) { Keeps::Leased } else { Keeps::Unleased });
        }
    }

    /// The second look. Returns whether the key is answered, and its lease, if there is one, not needed.
    fn take_in_again(&mut self, place: usize, latest: Result<Outcome>) -> bool {
        let wanted = &mut self.wanted[place];
        let held = match latest {
            Ok(latest) => latest.into_value(),
            Err(error) => {
                self.cannot_read(place, &error);
                return false;
            }
        };
        if wanted.answer.is_some() {
            return true;
        }
        let found = Found::of(held.as_ref().and_then(|held| V::decode(&self.cache, &wanted.key, held)));
        let is_refresh = wanted.old.is_some();
        let value = match found {
            Found::Current { value, .. } => Some(value),
            found if !is_refresh => found.into_value(),
            Found::Old { value, is_stale } => {
                wanted.old = Some((value, is_stale));
                None
            }
            Found::Nothing => None,
        };
        match (value, &held) {
            (Some(value), Some(encoded)) => {
                wanted.land(Landing::Loaded(encoded.clone()));
                self.coalesced(place, value);
                true
            }
            _ => {
                wanted.held = held;
                false
            }
        }
    }

    pub(super) fn coalesced(&mut self, place: usize, value: V) {
        self.cache.local().counters.coalesced();
        self.wanted[place].answer(Answer::Value(value), "coalesced");
    }
}

/// Whether a write that failed like this may have taken effect.
fn is_uncertain(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Io | ErrorKind::Protocol)
}
