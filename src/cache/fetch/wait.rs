//! The fourth step: waits for what others have claimed. Nothing of this caller's own is left to be loaded by then.
//!
//! Another process is watched by one caller of this process, its leader, for all: it looks at the lease and at the
//! value, with pauses. A leader of this process wakes those who wait for it. Whose wait ends without a value claims the
//! key in turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Fetching;
use super::form::{Form, Found};
use super::load_state::{Keeps, Load, LoadState, Verdict};
use super::single_flight::Landing;
use crate::cache::fork_guarded;
use crate::cache::wait_clock::now;
use crate::error::Result;
use crate::execution::pause;
use crate::store::{Op, Outcome, lease_key};

/// The pauses between two looks: doubled from the shortest to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

impl<V: Form, E> Fetching<V, E> {
    pub(super) async fn wait(&mut self) {
        // First what others of this process may be waiting for, or two could wait for each other.
        self.watch().await;
        // What is to be claimed now is still led: whoever follows that must not be followed meanwhile.
        if self.wanted.iter().any(|wanted| matches!(wanted.state, LoadState::Claim(_) | LoadState::Load(_))) {
            return;
        }
        for place in 0..self.wanted.len() {
            self.follow(place).await;
        }
    }

    /// Until none of the leases is waited for any more.
    async fn watch(&mut self) {
        let mut length = SHORTEST_PAUSE;
        let mut has_paused = false;
        loop {
            let until = self.wanted.iter_mut().filter_map(|wanted| wanted.judge(has_paused)).min();
            let Some(until) = until else { return };
            let left = until.saturating_duration_since(now());
            let paused = fork_guarded(Box::pin(pause(length.min(left)))).await;
            has_paused = true;
            length = (2 * length).min(LONGEST_PAUSE);
            if !matches!(paused, Ok(Ok(()))) {
                // In a child, whose parent leads.
                self.wanted.iter_mut().for_each(|wanted| wanted.state.load(Keeps::Nothing));
                return;
            }
            self.look_at_leases().await;
        }
    }

    /// One round trip. The lease is read first: it ends after the value was stored.
    async fn look_at_leases(&mut self) {
        let watched: Vec<(usize, String, String)> = self
            .wanted
            .iter()
            .enumerate()
            .filter(|(_, wanted)| matches!(&wanted.state, LoadState::Claim(claim) if !claim.asks))
            .map(|(place, wanted)| (place, lease_key(&wanted.full_key), wanted.full_key.clone()))
            .collect();
        let reads = watched.iter().flat_map(|(_, lease, key)| [Op::Get { key: lease }, Op::Get { key }]);
        let reads: Vec<Op<'_>> = reads.collect();
        let mut outcomes = self.cache.batch(&reads).await.into_iter();
        for (place, ..) in &watched {
            if let Some((lease, value)) = outcomes.next().zip(outcomes.next()) {
                self.take_in_watched(*place, lease, value);
            }
        }
    }

    fn take_in_watched(&mut self, place: usize, lease: Result<Outcome>, value: Result<Outcome>) {
        let wanted = &mut self.wanted[place];
        match (lease, value) {
            (Ok(lease), Ok(value)) => {
                let held: Option<Bytes> = value.into_value();
                let found = Found::of(held.as_ref().and_then(|held| V::decode(&self.cache, &wanted.key, held)));
                if let (Some(value), Some(encoded)) = (found.into_value(), &held) {
                    wanted.land(Landing::Loaded(encoded.clone()));
                    return self.coalesced(place, value);
                }
                wanted.held = held;
                if let LoadState::Claim(claim) = &mut wanted.state {
                    claim.sees(lease.into_value());
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                wanted.state.load(Keeps::Unleased);
                self.cannot_read(place, &error);
            }
        }
    }

    /// Waits for the leader of this process.
    async fn follow(&mut self, place: usize) {
        let wanted = &mut self.wanted[place];
        let LoadState::Follow(flight) = &wanted.state else { return };
        let flight = Arc::clone(flight);
        wanted.state = LoadState::Open;
        match flight.landing(wanted.until).await {
            Some(Landing::Loaded(encoded)) => match V::decode(&self.cache, &self.wanted[place].key, &encoded) {
                Some((value, _)) => self.coalesced(place, value),
                None => self.wanted[place].state = LoadState::Load(Load::ALONE),
            },
            Some(Landing::NotShareable) => self.wanted[place].state = LoadState::Load(Load::ALONE),
            // The next one leads.
            Some(Landing::Failed) => {}
            None => {
                let (bound, wanted) = (self.bound, &mut self.wanted[place]);
                if wanted.turn > 0 {
                    wanted.state = LoadState::Load(Load::ALONE);
                }
                wanted.turn += 1;
                wanted.until = wanted.until.checked_add(bound).unwrap_or(wanted.until);
                wanted.overdue = Some(flight);
            }
        }
    }
}

impl<V, E> super::Wanted<V, E> {
    /// Decides about a lease as it was last seen. Returns until when it is to be waited for, if it is.
    fn judge(&mut self, has_paused: bool) -> Option<Instant> {
        let LoadState::Claim(claim) = &mut self.state else { return None };
        if claim.asks {
            return None;
        }
        match claim.verdict(has_paused) {
            Verdict::Wait if claim.is_overdue || now() >= self.until => claim.is_overdue = true,
            Verdict::Wait => return Some(self.until),
            // Others were quicker, or the store does not mean what it says.
            Verdict::Take if claim.losses > 1 && !has_paused => return Some(self.until),
            Verdict::Take => {}
            Verdict::LoadWithout => {
                self.state.load(Keeps::Nothing);
                return None;
            }
        }
        claim.asks = true;
        claim.is_overdue |= now() >= self.until;
        None
    }
}
