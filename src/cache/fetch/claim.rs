//! The second step of a fetch: decides which caller loads. Within the process it is the one with the lead of a flight,
//! among processes the one with the lease.
//!
//! Lead and lease are guards. The lead is granted or refused at once. Then one round trip asks for the leases of all
//! keys, and reads the keys again, since a value may have been stored after the first read.

use std::sync::Arc;

use bytes::Bytes;

use super::form::{Form, Found};
use super::lease::Lease;
use super::load_state::{Claim, Load, LoadState, StoreWhen, Verdict};
use super::nesting;
use super::single_flight::{Joined, Landing};
use super::{Answer, Fetching};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Op, Outcome};

/// The part of one key in the round trip.
struct LeaseRequest {
    index: usize,
    full_key: String,
    lease: Option<Lease>,
    /// The bytes that the lease replaces.
    previous: Option<Bytes>,
}

impl<V: Form, E> Fetching<V, E> {
    /// Takes the leads, in this process.
    pub(super) fn lead(&mut self) {
        let flights = Arc::clone(&self.cache.local().flights);
        let lapse = self.cache.effective_load_timeout();
        for wanted in &mut self.wanted {
            if wanted.answer.is_some() || !matches!(wanted.state, LoadState::Open) {
                continue;
            }
            let joined = if wanted.old.is_some() {
                // Others get the old value while one caller loads.
                flights.try_lead(&wanted.full_key, lapse).map(Joined::Lead)
            } else {
                Some(flights.join(&wanted.full_key, lapse, wanted.overdue.take().as_deref()))
            };
            wanted.state = match joined {
                None => {
                    wanted.answer_old();
                    LoadState::Open
                }
                Some(Joined::Lead(lead)) => LoadState::Claim(Claim::new(lead, wanted.waits > 0)),
                // Waiting would deadlock: the flight is this caller's own, or its leader needs this thread.
                Some(Joined::Wait(flight))
                    if nesting::is_part_of(flight.number()) || flight.would_block_its_leader() =>
                {
                    LoadState::Load(Load::ALONE)
                }
                Some(Joined::Wait(flight)) => LoadState::Follow(flight),
            };
        }
    }

    /// Takes the leases, among processes.
    pub(super) async fn lease(&mut self) {
        let requests = self.lease_requests();
        if requests.is_empty() {
            return;
        }
        let mut operations = Vec::with_capacity(3 * requests.len());
        for LeaseRequest { full_key, lease, previous, .. } in &requests {
            if let Some(lease) = lease {
                operations.push(lease.take(previous.as_deref()));
                operations.push(Op::Get { key: lease.key() });
            }
            operations.push(Op::Get { key: full_key });
        }
        let mut outcomes = self.cache.batch(&operations).await.into_iter();
        let mut unneeded = Vec::new();
        for LeaseRequest { index, lease, previous, .. } in &requests {
            let leased = lease.is_some().then(|| outcomes.next().zip(outcomes.next())).flatten();
            if let Some((taken, held)) = leased {
                self.record_lease(*index, previous.is_some(), taken, held);
            }
            if let Some(latest) = outcomes.next()
                && self.record_second_read(*index, latest)
            {
                unneeded.push(*index);
            }
        }
        self.leases.release(&unneeded).await;
    }

    /// Returns the leases and reads to request. A lead that needs no lease loads without a second read, unless this
    /// process has stored a value since the first read.
    fn lease_requests(&mut self) -> Vec<LeaseRequest> {
        let local = self.cache.local();
        let landed = local.flights.landed();
        let has_landed = std::mem::replace(&mut self.landed, landed) != landed;
        let takes_leases = self.cache.takes_leases() && !local.has_no_leases();
        let mut requests = Vec::new();
        for (index, wanted) in self.wanted.iter_mut().enumerate() {
            let LoadState::Claim(claim) = &mut wanted.state else { continue };
            if !claim.is_requesting {
                continue;
            }
            let lease = (takes_leases && wanted.may_store).then(|| Lease::new(&wanted.full_key, self.cache.patience()));
            if let Some(lease) = &lease {
                self.leases.add(index, lease.clone());
            }
            let (previous, may_store) = (claim.seen.clone(), wanted.may_store);
            if lease.is_none() {
                wanted.state.load(if may_store { StoreWhen::Unchanged } else { StoreWhen::Never });
            }
            if lease.is_some() || (may_store && has_landed) {
                requests.push(LeaseRequest { index, full_key: wanted.full_key.clone(), lease, previous });
            }
        }
        requests
    }

    /// Records the result of the attempt to take a lease.
    fn record_lease(&mut self, index: usize, was_seen: bool, taken: Result<Outcome>, held: Result<Outcome>) {
        let wanted = &mut self.wanted[index];
        let error = match taken {
            Ok(taken) if taken.is_done() => return wanted.state.load(StoreWhen::LeaseHeld),
            Ok(_) => {
                self.leases.forget(index);
                let LoadState::Claim(claim) = &mut wanted.state else { return };
                claim.lose_to(held.ok().and_then(Outcome::into_value));
                if wanted.old.is_some() {
                    claim.seen_since =
                        self.cache.local().flights.record_elsewhere(&wanted.full_key, claim.seen.as_ref());
                    if was_seen || claim.verdict(false) != Verdict::Take {
                        wanted.state = LoadState::Open;
                        wanted.answer_old();
                    }
                } else if claim.is_overdue && was_seen {
                    wanted.state.load(StoreWhen::Never);
                }
                return;
            }
            Err(error) => error,
        };
        if error.kind() == ErrorKind::Unsupported {
            self.leases.forget(index);
            if self.cache.local().turn_leases_off() {
                self.cache.report(self.verb, &error);
            }
            return wanted.state.load(StoreWhen::Unchanged);
        }
        self.cache.report(self.verb, &error);
        // A lease that may have been granted stays in the list, and is released in the end.
        if !is_uncertain(&error) {
            self.leases.forget(index);
        }
        if wanted.old.is_some() {
            wanted.state = LoadState::Open;
            wanted.answer_old();
        } else {
            wanted.state.load(if is_uncertain(&error) { StoreWhen::LeaseHeld } else { StoreWhen::Unchanged });
        }
    }

    /// Records the second read. Returns whether the key is answered, so that its lease is not needed.
    fn record_second_read(&mut self, index: usize, latest: Result<Outcome>) -> bool {
        let wanted = &mut self.wanted[index];
        let held = match latest {
            Ok(latest) => latest.into_value(),
            Err(error) => {
                self.cannot_read(index, &error);
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
                self.coalesced(index, value);
                true
            }
            _ => {
                wanted.seen = held;
                false
            }
        }
    }

    pub(super) fn coalesced(&mut self, index: usize, value: V) {
        self.cache.local().counters.coalesced();
        self.wanted[index].answer(Answer::Value(value), "coalesced");
    }
}

/// Returns whether a write that failed like this may have taken effect.
fn is_uncertain(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Io | ErrorKind::Protocol)
}
