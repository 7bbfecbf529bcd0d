//! The fourth step of a fetch: waits for keys that other callers have claimed. By then this caller has loaded its own.
//!
//! For another process's load, only the leader in this process polls the lease and the value, with pauses. It then
//! wakes the other callers of this process. A caller whose wait ends without a value claims the key itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Fetching;
use super::form::{Form, Found};
use super::load_state::{Load, LoadState, StoreWhen, Verdict};
use super::single_flight::Landing;
use crate::cache::fork_guarded;
use crate::cache::wait_clock::now;
use crate::error::Result;
use crate::execution::pause;
use crate::store::{Op, Outcome, lease_key};

/// Pauses between two polls: doubled from the shortest to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

impl<V: Form, E> Fetching<V, E> {
    pub(super) async fn wait(&mut self) {
        // First the keys that this caller leads, or two callers could wait for each other.
        self.watch().await;
        // Keys to claim or load now have a lead: this caller must not wait for another flight while it holds one.
        if self.wanted.iter().any(|wanted| matches!(wanted.state, LoadState::Claim(_) | LoadState::Load(_))) {
            return;
        }
        for index in 0..self.wanted.len() {
            self.follow(index).await;
        }
    }

    /// Polls the leases of other processes until there is none left to wait for.
    async fn watch(&mut self) {
        let mut length = SHORTEST_PAUSE;
        let mut has_paused = false;
        loop {
            let until = self.wanted.iter_mut().filter_map(|wanted| wanted.decide(has_paused)).min();
            let Some(until) = until else { return };
            let left = until.saturating_duration_since(now());
            let paused = fork_guarded(Box::pin(pause(length.min(left)))).await;
            has_paused = true;
            length = (2 * length).min(LONGEST_PAUSE);
            if !matches!(paused, Ok(Ok(()))) {
                // In a child: the lead is the parent's.
                self.wanted.iter_mut().for_each(|wanted| wanted.state.load(StoreWhen::Never));
                return;
            }
            self.look_at_leases().await;
        }
    }

    /// Reads leases and values in one round trip. The lease is read first, since it ends after the value was stored.
    async fn look_at_leases(&mut self) {
        let watched: Vec<(usize, String, String)> = self
            .wanted
            .iter()
            .enumerate()
            .filter(|(_, wanted)| matches!(&wanted.state, LoadState::Claim(claim) if !claim.is_requesting))
            .map(|(index, wanted)| (index, lease_key(&wanted.full_key), wanted.full_key.clone()))
            .collect();
        let reads = watched.iter().flat_map(|(_, lease, key)| [Op::Get { key: lease }, Op::Get { key }]);
        let reads: Vec<Op<'_>> = reads.collect();
        let mut outcomes = self.cache.batch(&reads).await.into_iter();
        for (index, ..) in &watched {
            if let Some((lease, value)) = outcomes.next().zip(outcomes.next()) {
                self.record_watched(*index, lease, value);
            }
        }
    }

    fn record_watched(&mut self, index: usize, lease: Result<Outcome>, value: Result<Outcome>) {
        let wanted = &mut self.wanted[index];
        match (lease, value) {
            (Ok(lease), Ok(value)) => {
                let held: Option<Bytes> = value.into_value();
                let found = Found::of(held.as_ref().and_then(|held| V::decode(&self.cache, &wanted.key, held)));
                if let (Some(value), Some(encoded)) = (found.into_value(), &held) {
                    wanted.land(Landing::Loaded(encoded.clone()));
                    return self.coalesced(index, value);
                }
                wanted.seen = held;
                if let LoadState::Claim(claim) = &mut wanted.state {
                    claim.observe(lease.into_value());
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                wanted.state.load(StoreWhen::Unchanged);
                self.cannot_read(index, &error);
            }
        }
    }

    /// Waits for the leader in this process.
    async fn follow(&mut self, index: usize) {
        let wanted = &mut self.wanted[index];
        let LoadState::Follow(flight) = &wanted.state else { return };
        let flight = Arc::clone(flight);
        wanted.state = LoadState::Open;
        match flight.landing(wanted.until).await {
            Some(Landing::Loaded(encoded)) => match V::decode(&self.cache, &self.wanted[index].key, &encoded) {
                Some((value, _)) => self.coalesced(index, value),
                None => self.wanted[index].state = LoadState::Load(Load::ALONE),
            },
            Some(Landing::NotShareable) => self.wanted[index].state = LoadState::Load(Load::ALONE),
            // The key stays open: the next step claims it.
            Some(Landing::Failed) => {}
            None => {
                let (bound, wanted) = (self.bound, &mut self.wanted[index]);
                if wanted.waits > 0 {
                    wanted.state = LoadState::Load(Load::ALONE);
                }
                wanted.waits += 1;
                wanted.until = wanted.until.checked_add(bound).unwrap_or(wanted.until);
                wanted.overdue = Some(flight);
            }
        }
    }
}

impl<V, E> super::Wanted<V, E> {
    /// Decides what to do about a lease, as last seen. Returns the time until which to wait for it, or `None` if the
    /// wait is over.
    fn decide(&mut self, has_paused: bool) -> Option<Instant> {
        let LoadState::Claim(claim) = &mut self.state else { return None };
        if claim.is_requesting {
            return None;
        }
        match claim.verdict(has_paused) {
            Verdict::Wait if claim.is_overdue || now() >= self.until => claim.is_overdue = true,
            Verdict::Wait => return Some(self.until),
            // Other processes were faster several times, or the store contradicts itself.
            Verdict::Take if claim.losses > 1 && !has_paused => return Some(self.until),
            Verdict::Take => {}
            Verdict::LoadWithout => {
                self.state.load(StoreWhen::Never);
                return None;
            }
        }
        claim.is_requesting = true;
        claim.is_overdue |= now() >= self.until;
        None
    }
}
