//! Read, or load and store.
//!
//! A fetch goes in four steps, for one key and for many alike:
//!
//! 1. [`lookup`]: what does the store hold? Most fetches end here.
//! 2. [`claim`]: who loads? In this process the lead of a [`single_flight`] says so, among processes a [`lease`].
//! 3. [`settle`]: loads what was claimed, stores it unless it was revoked, and hands it to those who wait.
//! 4. [`wait`]: only then waits for what others have claimed; whatever they gave up is claimed in turn.
//!
//! What happens when
//!
//! - *a leader's process is killed*: its lease stays. Who watches it ([`wait`]) takes it over, at once on the same
//!   host, since its [`lease_holder`] is seen to be dead, elsewhere when no beat has come for the patience of the [`lease`].
//! - *the key is deleted in mid-load*: the delete revokes the flight and replaces the lease by a mark. At the end of
//!   the load [`settle`] finds either, and does not store; a caller that comes after the delete begins a flight and a
//!   lease of its own.
//! - *the store does not answer*: at the [`lookup`] the key is marked as not to be kept: it is loaded once in the
//!   process, and not stored. While a lease is watched the leader stops watching and loads. At the end the failure is
//!   reported.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Cache;
use crate::error::Result;
use crate::execution::{Execution, execution};
use crate::store::lease_holder;
use form::Form;
use lease::Leases;
use load_state::{Keeps, Load, LoadState};
use single_flight::Landing;

pub(super) use lease::{DELETED, MARK_TTL};
pub use loaded::Loaded;
pub use lock::LockGuard;
pub(super) use single_flight::{Flight, Flights};
pub use two_steps::{Begun, Claim};

// What people call, in the order of the documentation; apart, or they would be sorted.
mod one;

mod many;

#[cfg(feature = "tokio")]
mod detached;

mod two_steps;

mod lock;

// The four steps.
mod claim;
mod lookup;
mod settle;
mod wait;

mod form;
mod lease;
mod load_state;
mod loaded;
mod nesting;
mod shared;
mod single_flight;

impl Cache {
    /// How long others leave a lease alone without a beat. Where nothing can beat: as long as a load may take.
    fn patience(&self) -> Duration {
        let settings = &self.shared.settings;
        match execution() {
            Ok(Execution::Inline) | Err(_) => settings.lease.max(self.longest_load()),
            #[cfg(feature = "tokio")]
            Ok(Execution::Tokio(_)) => settings.lease,
        }
    }
}

/// A fetch that the first look has not ended.
struct Fetching<V, E> {
    /// Dropped first, before those who wait in this process are woken.
    leases: Leases,
    wanted: Vec<Wanted<V, E>>,
    cache: Cache,
    /// What its failures are reported as.
    verb: &'static str,
    /// How long it waits for others before it claims in turn.
    bound: Duration,
    /// How many loads of this process had ended before the last look.
    landed: u64,
}

/// One of its keys.
struct Wanted<V, E> {
    key: String,
    /// As the store sees it.
    full_key: String,
    /// What the store held at the last look: a loaded value takes the place of that and of nothing else.
    held: Option<Bytes>,
    /// A value that serves while another is loaded, and whether it is stale.
    old: Option<(V, bool)>,
    /// Whether the store is there to keep what is loaded.
    is_kept: bool,
    state: LoadState,
    /// How often this caller has waited for as long as the bound.
    turn: u8,
    until: Instant,
    /// The flight that it has waited for long enough.
    overdue: Option<Arc<Flight>>,
    answer: Option<Answer<V, E>>,
    outcome: &'static str,
}

enum Answer<V, E> {
    Value(V),
    /// The old value.
    Old,
    Error(E),
}

impl<V: Form, E> Fetching<V, E> {
    fn new(cache: &Cache, verb: &'static str, keys: &[&str], landed: u64) -> Fetching<V, E> {
        let settings = &cache.shared.settings;
        let bound = if nesting::is_in_loader() { settings.fetch_wait } else { cache.longest_load() };
        let now = super::wait_clock::now();
        let wanted = |key: &&str| Wanted {
            key: (*key).to_owned(),
            full_key: cache.prefix.full_key(key),
            held: None,
            old: None,
            is_kept: true,
            state: if cache.is_forced {
                LoadState::Load(Load { lead: None, keeps: Keeps::Always })
            } else {
                LoadState::Open
            },
            turn: 0,
            until: now + bound,
            overdue: None,
            answer: None,
            outcome: "",
        };
        let wanted = keys.iter().map(wanted).collect();
        Fetching { leases: Leases::none(cache, verb), wanted, cache: cache.clone(), verb, bound, landed }
    }

    /// The steps after the look, for one key.
    async fn one<F: Future<Output = Result<Loaded<V>, E>>>(
        mut self,
        load: impl FnOnce() -> F,
    ) -> (Result<V, E>, &'static str) {
        let mut load = Some(load);
        while let Some(asked) = self.next_loads().await {
            let load = load.take().expect("a key is loaded once");
            self.load_and_settle(asked, async move { vec![load().await] }).await;
        }
        self.into_answers().next().expect("an answer for the key")
    }

    /// The places of the keys that this caller is to load now; `None` when all are answered.
    async fn next_loads(&mut self) -> Option<Vec<usize>> {
        loop {
            self.lead();
            self.lease().await;
            let is_load = |place: &usize| matches!(self.wanted[*place].state, LoadState::Load(_));
            let loads: Vec<usize> = (0..self.wanted.len()).filter(is_load).collect();
            if !loads.is_empty() {
                return Some(loads);
            }
            if self.wanted.iter().all(|wanted| wanted.answer.is_some()) {
                return None;
            }
            self.wait().await;
        }
    }

    /// The answers, in the order of the keys, and how each came about.
    fn into_answers(self) -> impl Iterator<Item = (Result<V, E>, &'static str)> {
        self.wanted.into_iter().map(|wanted| {
            let answer = match wanted.answer.expect("every key is answered") {
                Answer::Value(value) => Ok(value),
                Answer::Old => Ok(wanted.old.expect("an old value").0),
                Answer::Error(error) => Err(error),
            };
            (answer, wanted.outcome)
        })
    }
}

impl<V, E> Wanted<V, E> {
    fn answer(&mut self, answer: Answer<V, E>, outcome: &'static str) {
        (self.answer, self.outcome) = (Some(answer), outcome);
    }

    fn answer_old(&mut self) {
        let is_stale = self.old.as_ref().is_some_and(|(_, is_stale)| *is_stale);
        self.answer(Answer::Old, lookup::outcome(is_stale));
    }

    /// Ends the flight that is led.
    fn land(&mut self, landing: Landing) {
        if let Some(lead) = self.state.take_lead() {
            lead.land(landing);
        }
    }
}
