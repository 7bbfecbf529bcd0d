//! Fetch: reads a value, or loads and stores it.
//!
//! A fetch has four steps, for one key and for many alike:
//!
//! 1. [`lookup`] reads the keys. Most fetches end here.
//! 2. [`claim`] decides which caller loads: in this process the one with the lead of a flight ([`single_flight`]),
//!    among processes the one with the [`lease`].
//! 3. [`settle`] loads the claimed keys, stores the values unless they were revoked, and passes them to waiting
//!    callers.
//! 4. [`wait`] waits for the keys that other callers have claimed. Keys that they fail to load are claimed in turn.
//!
//! How failures are handled:
//!
//! - *A leader's process is killed*: its lease stays. The process that polls it ([`wait`]) takes it over: on the same
//!   host at once, because the [`lease_holder`] is found dead, elsewhere when there was no heartbeat for the patience
//!   of the [`lease`].
//! - *The key is deleted during a load*: the delete revokes the flight and replaces the lease by a mark. At the end of
//!   the load [`settle`] finds one of these, and does not store. A caller that comes after the delete starts a flight
//!   and a lease of its own.
//! - *The store does not respond*: at [`lookup`], the key is marked as not to be stored, and is loaded once in the
//!   process. While polling a lease, the leader stops polling and loads. At the end of the load, the failure is
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
use load_state::{Load, LoadState, StoreWhen};
use single_flight::Landing;

pub(super) use lease::{DELETED, MARK_TTL};
pub use loaded::Loaded;
pub use lock::LockGuard;
pub(super) use single_flight::{Flight, Flights};
pub use two_steps::{Begun, Claim};

// The public methods, in the order of the documentation. Separate items, or rustfmt would sort them.
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
    /// Returns how long other processes respect a lease without a heartbeat. Where there is no heartbeat, as long as a
    /// load may take.
    fn patience(&self) -> Duration {
        let settings = &self.shared.settings;
        match execution() {
            Ok(Execution::Inline) | Err(_) => settings.lease.max(self.effective_load_timeout()),
            #[cfg(feature = "tokio")]
            Ok(Execution::Tokio(_)) => settings.lease,
        }
    }
}

/// A fetch that the first read did not answer.
struct Fetching<V, E> {
    /// Dropped first, so that leases are released before waiting callers in this process are woken.
    leases: Leases,
    wanted: Vec<Wanted<V, E>>,
    cache: Cache,
    /// The method, for reports of failures.
    verb: &'static str,
    /// How long to wait for other callers before claiming the key.
    bound: Duration,
    /// How many loads of this process had ended before the last read.
    landed: u64,
}

/// One key of a fetch.
struct Wanted<V, E> {
    key: String,
    /// The key with its prefix, as the store sees it.
    full_key: String,
    /// The entry at the last read. A loaded value replaces only this entry.
    seen: Option<Bytes>,
    /// An old value to return if the load fails, and whether it is stale.
    old: Option<(V, bool)>,
    /// Whether the loaded value may be stored.
    may_store: bool,
    state: LoadState,
    /// How often this caller has waited for the full bound.
    waits: u8,
    until: Instant,
    /// The flight that this caller has waited for long enough.
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
        let bound = if nesting::is_in_loader() { settings.fetch_wait } else { cache.effective_load_timeout() };
        let now = super::wait_clock::now();
        let wanted = |key: &&str| Wanted {
            key: (*key).to_owned(),
            full_key: cache.prefix.full_key(key),
            seen: None,
            old: None,
            may_store: true,
            state: if cache.is_forced {
                LoadState::Load(Load { lead: None, store_when: StoreWhen::Always })
            } else {
                LoadState::Open
            },
            waits: 0,
            until: now + bound,
            overdue: None,
            answer: None,
            outcome: "",
        };
        let wanted = keys.iter().map(wanted).collect();
        Fetching { leases: Leases::none(cache, verb), wanted, cache: cache.clone(), verb, bound, landed }
    }

    /// Runs the steps after the first read, for one key.
    async fn one<F: Future<Output = Result<Loaded<V>, E>>>(
        mut self,
        load: impl FnOnce() -> F,
    ) -> (Result<V, E>, &'static str) {
        let mut load = Some(load);
        while let Some(to_load) = self.next_loads().await {
            let load = load.take().expect("a key is loaded once");
            self.load_and_settle(to_load, async move { vec![load().await] }).await;
        }
        self.into_answers().next().expect("an answer for the key")
    }

    /// Returns the indices of the keys to load now, or `None` when all are answered.
    async fn next_loads(&mut self) -> Option<Vec<usize>> {
        loop {
            self.lead();
            self.lease().await;
            let is_load = |index: &usize| matches!(self.wanted[*index].state, LoadState::Load(_));
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

    /// Returns the answers, in the order of the keys, each with its outcome for telemetry.
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

    /// Ends the flight that this caller leads.
    fn land(&mut self, landing: Landing) {
        if let Some(lead) = self.state.take_lead() {
            lead.land(landing);
        }
    }
}
